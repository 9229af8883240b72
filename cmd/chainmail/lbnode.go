package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"chainmail/node/api"
	"chainmail/node/client"
)

// lbNode asks one member, as lb.Asker.
type lbNode struct {
	*client.Client
	prober  *prober
	address string
	// silent: only its health can be asked, since there is no token.
	silent bool
}

// Cluster asks what the member knows of the cluster.
func (n lbNode) Cluster(ctx context.Context) (api.Cluster, error) {
	if n.silent {
		return api.Cluster{}, errors.New("only the node on this machine is asked: name others with --peer and --token-file")
	}
	return n.Client.Cluster(ctx)
}

// Ready asks the member whether it takes mail.
func (n lbNode) Ready(ctx context.Context) (api.Health, error) {
	return n.prober.ready(ctx, n.address)
}

// prober asks nodes for their health, which is open, by TLS, which proves that it
// is they who answer.
type prober struct {
	ca func(context.Context) ([]byte, error)

	mu   sync.Mutex
	http *http.Client // nil: the CA is not known yet
}

// orBy lets c be asked for the CA, until somebody has answered.
func (p *prober) orBy(c *client.Client) *prober {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.http == nil {
		p.ca = c.CA
	}
	return p
}

// probeHeader bounds a node's answer.
const probeAnswer = 64 << 10

func (p *prober) client(ctx context.Context) (*http.Client, error) {
	p.mu.Lock()
	have, ask := p.http, p.ca
	p.mu.Unlock()
	if have != nil {
		return have, nil
	}
	text, err := ask(ctx)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, errors.New("the CA's certificate cannot be read")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.http = &http.Client{Transport: &http.Transport{
		DialContext:         (&net.Dialer{Timeout: time.Second}).DialContext,
		TLSClientConfig:     &tls.Config{RootCAs: pool, ServerName: api.NodeName, MinVersion: tls.VersionTLS12},
		MaxIdleConnsPerHost: 1,
		IdleConnTimeout:     time.Minute,
	}}
	return p.http, nil
}

func (p *prober) ready(ctx context.Context, address string) (h api.Health, err error) {
	c, err := p.client(ctx)
	if err != nil {
		return h, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+"/readyz", nil)
	if err != nil {
		return h, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return h, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, probeAnswer)).Decode(&h); err != nil {
		return h, fmt.Errorf("its answer at /readyz (%s) cannot be read: %w", resp.Status, err)
	}
	return h, nil
}
