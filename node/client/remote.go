package client

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"

	"chainmail/node/api"
)

// ErrOtherCluster means that who answers is not of the cluster that made the
// token.
var ErrOtherCluster = errors.New("belongs to another cluster")

var errCertificate = errors.New("there is no certificate")

// NewRemote makes a client for the HTTP port of a node of a cluster, "host:port",
// for a program that has nothing but an API token: it speaks TLS, and by the
// token it knows the cluster's CA, so it tells nobody else the token. It does
// not connect.
func NewRemote(address, token string) (*Client, error) {
	return NewRemoteOn(address, token, (&net.Dialer{Timeout: peerDialTimeout}).DialContext)
}

// NewRemoteOn is NewRemote on a network of a test's own.
func NewRemoteOn(address, token string, dial Dial) (*Client, error) {
	secret, ok := api.ParseSecret(api.APITokenPrefix, token)
	c, err := newRemote(address, secret.CA, dial)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("the API token is none, or not the whole of it: one begins with '%s', and 'chainmail token api' on any node makes one", api.APITokenPrefix)
	}
	c.token = strings.TrimSpace(token)
	return c, nil
}

// NewMember makes a client for the HTTP port of a node of the cluster whose CA has
// this certificate, in PEM. It has no token, and so may ask what is open to all.
// It does not connect.
func NewMember(address string, ca []byte) (*Client, error) {
	block, _ := pem.Decode(ca)
	if block == nil {
		return nil, errors.New("the CA's certificate cannot be read: it is not in PEM")
	}
	return newRemote(address, sha256.Sum256(block.Bytes), (&net.Dialer{Timeout: peerDialTimeout}).DialContext)
}

// newRemote makes a client for a node that proves itself by the CA with this hash.
func newRemote(address string, ca [sha256.Size]byte, dial Dial) (*Client, error) {
	address = strings.TrimSuffix(strings.TrimPrefix(address, "https://"), "/")
	host, port, err := net.SplitHostPort(address)
	if n, errPort := strconv.ParseUint(port, 10, 16); err != nil || host == "" || errPort != nil || n == 0 {
		return nil, fmt.Errorf("%q is not the address of a node's HTTP port: write HOST:PORT", address)
	}
	t := transport()
	t.DialContext = dial
	t.TLSHandshakeTimeout = peerHandshakeTimeout
	t.TLSClientConfig = &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         api.NodeName,
		InsecureSkipVerify: true, // by the machine's authorities; ours follows
		VerifyConnection:   func(cs tls.ConnectionState) error { return ofCluster(ca, address, cs.PeerCertificates) },
	}
	return &Client{base: "https://" + address, peer: address, ca: &ca, http: straight(t), most: maxRemoteAnswer}, nil
}

// ofCluster checks that a node has a certificate of the CA with this hash, which
// it sends along.
func ofCluster(hash [sha256.Size]byte, address string, certs []*x509.Certificate) error {
	roots := x509.NewCertPool()
	found := false
	for _, c := range certs {
		if sha256.Sum256(c.Raw) == hash {
			roots.AddCert(c)
			found = true
		}
	}
	if !found {
		return otherCluster(address)
	}
	if _, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: api.NodeName}); err != nil {
		return fmt.Errorf("%w that proves the node at %s: %w: if it was made by an older version, 'chainmail keys rotate' on any node makes new ones for all", errCertificate, address, err)
	}
	return nil
}

func otherCluster(address string) error {
	return fmt.Errorf("the node at %s %w than the one that made the API token: give the address of a node of that cluster, or make a token on this one with 'chainmail token api'", address, ErrOtherCluster)
}

// CA asks for the certificate of the cluster's authority, in PEM, and checks it
// by the client's API token, when it has one.
func (c *Client) CA(ctx context.Context) ([]byte, error) {
	resp, err := c.do(ctx, http.MethodGet, "/cluster/ca", nil, 0)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" || len(rest) > 0 {
		return nil, fmt.Errorf("what %s answered is not one certificate in PEM: see whether it is the address of a node's HTTP port", c.base)
	}
	if c.ca != nil && sha256.Sum256(block.Bytes) != *c.ca {
		return nil, otherCluster(c.base)
	}
	return text, nil
}
