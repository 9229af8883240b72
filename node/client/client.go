package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"chainmail/archive/record"
	"chainmail/node/api"
)

// Client talks to one node. Its methods may be called from any goroutine; it
// keeps connections open between calls.
type Client struct {
	base  string // up to and without api.Prefix
	token string
	http  *http.Client
	// socket is the path of the admin socket, empty over TCP, and peer the address
	// of another node's port: what error messages name.
	socket, peer string
	ca           *[sha256.Size]byte // hash of the CA that the API token names; nil: none
	most         int64              // bytes of an answer in JSON
}

// What an answer in JSON may have, in bytes: who answers may be no node, or one in
// other hands. A page of messages with thousands of recipients each is large; a
// program elsewhere, on a small machine, asks for the cluster.
const (
	maxAnswer       = 256 << 20
	maxRemoteAnswer = 4 << 20
)

// idleConnections is how many connections stay open between calls: enough for
// the workers of an import or a load test.
const idleConnections = 64

// New makes a client for the admin socket of the node on this machine. It does
// not connect.
func New(socket string) *Client {
	return NewSocket(socket, new(net.Dialer).DialContext)
}

// NewTCP makes a client for a node's TCP listener, "http://host:port" or
// "https://host:port", with an API token. It does not connect.
func NewTCP(baseURL, token string) (*Client, error) {
	u, err := url.Parse(baseURL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%q is not the address of a node: write http://host:port or https://host:port", baseURL)
	}
	t := transport()
	t.Proxy = http.ProxyFromEnvironment
	c := &Client{base: strings.TrimRight(baseURL, "/"), token: token, http: straight(t), most: maxAnswer}
	if secret, ok := api.ParseSecret(api.APITokenPrefix, token); ok {
		c.ca = &secret.CA
	}
	return c, nil
}

func transport() *http.Transport {
	return &http.Transport{
		MaxIdleConns:        idleConnections,
		MaxIdleConnsPerHost: idleConnections,
		IdleConnTimeout:     time.Minute,
		// With "Expect: 100-continue" a node that is full can say so before a
		// large message is sent in vain.
		ExpectContinueTimeout: time.Second,
		DisableCompression:    true, // a body's bytes are the message's bytes
	}
}

// straight is a client that goes nowhere else: nodes do not redirect, and who does
// would have it ask others in this machine's name.
func straight(t *http.Transport) *http.Client {
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// Close drops the idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status asks for the state of the node.
func (c *Client) Status(ctx context.Context) (st api.Status, err error) {
	return st, c.call(ctx, http.MethodGet, "/status", nil, &st)
}

// Ready asks whether the node takes mail. That it does not is an answer, and no
// error.
func (c *Client) Ready(ctx context.Context) (h api.Health, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/readyz", nil)
	if err != nil {
		return h, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return h, c.explain(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusServiceUnavailable {
		return h, readError(resp)
	}
	resp.Body = io.NopCloser(io.LimitReader(resp.Body, maxErrorBody))
	return h, c.decode(resp, &h)
}

// Query selects messages. The zero value selects all.
type Query struct {
	After   string // an ID: only messages listed after this one
	Since   string // RFC 3339, or a date in UTC: first received then or later
	Until   string // the same: first received before
	From    string // an address or a domain
	To      string // an address or a domain
	Subject bool   // ask for subjects, which is slower
	Newest  bool   // the newest first; After goes on towards older ones
	Limit   int    // of messages in all; 0: no limit
}

func (q Query) values(limit int) url.Values {
	v := url.Values{"limit": {strconv.Itoa(limit)}}
	for name, value := range map[string]string{"after": q.After, "since": q.Since, "until": q.Until, "from": q.From, "to": q.To} {
		if value != "" {
			v.Set(name, value)
		}
	}
	if q.Subject {
		v.Set("subject", "true")
	}
	if q.Newest {
		v.Set("order", "newest")
	}
	return v
}

// maxPage is the most messages that a node gives in one page.
const maxPage = 1000

// Messages lists the selected messages, page after page. An error ends the
// list.
func (c *Client) Messages(ctx context.Context, q Query) iter.Seq2[api.Message, error] {
	return func(yield func(api.Message, error) bool) {
		left := q.Limit
		for {
			limit := maxPage
			if q.Limit > 0 {
				limit = min(left, maxPage)
			}
			var page api.MessageList
			if err := c.call(ctx, http.MethodGet, "/messages?"+q.values(limit).Encode(), nil, &page); err != nil {
				yield(api.Message{}, err)
				return
			}
			for _, m := range page.Messages {
				if !yield(m, nil) {
					return
				}
			}
			left -= len(page.Messages)
			if page.Next == "" || q.Limit > 0 && left <= 0 {
				return
			}
			q.After = page.Next
		}
	}
}

// Message asks for one message with its receipts and header.
func (c *Client) Message(ctx context.Context, id string) (m api.Message, err error) {
	return m, c.call(ctx, http.MethodGet, messagePath(id), nil, &m)
}

// Has reports whether the archive holds the message with this hash.
func (c *Client) Has(ctx context.Context, h record.Hash) (bool, error) {
	resp, err := c.do(ctx, http.MethodHead, messagePath(h.String())+"/raw", nil, -1)
	if e, ok := errors.AsType[*Error](err); ok && e.Status == http.StatusNotFound {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, resp.Body.Close()
}

// Upload archives one message of size bytes (-1: unknown), which body gives. It
// closes the body, perhaps only after it returned.
func (c *Client) Upload(ctx context.Context, body io.ReadCloser, size int64) (a api.Accepted, err error) {
	resp, err := c.do(ctx, http.MethodPost, "/messages", body, size)
	if err != nil {
		return a, err
	}
	return a, c.decode(resp, &a)
}

// Verify asks the node to read and check everything, and calls report for
// every line that comes: progress, findings, and at last the event with Done,
// which it also returns. That there were findings is not an error here.
func (c *Client) Verify(ctx context.Context, report func(api.VerifyEvent)) (last api.VerifyEvent, err error) {
	resp, err := c.do(ctx, http.MethodPost, "/verify", nil, 0)
	if err != nil {
		return last, err
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); ; {
		var ev api.VerifyEvent
		if err := dec.Decode(&ev); err != nil {
			return last, fmt.Errorf("the verification ended early, after %d of %d receipts: %w", last.Checked, last.Total, c.explain(ctx, err))
		}
		last = ev
		if ev.Error != "" {
			return last, fmt.Errorf("the verification ended early, after %d of %d receipts: %s", ev.Checked, ev.Total, ev.Error)
		}
		report(ev)
		if ev.Done {
			return last, nil
		}
	}
}

// Tokens lists the API tokens.
func (c *Client) Tokens(ctx context.Context) ([]api.Token, error) {
	var l api.TokenList
	return l.Tokens, c.call(ctx, http.MethodGet, "/tokens", nil, &l)
}

// MakeToken makes an API token that works on every node; the answer alone has
// its secret.
func (c *Client) MakeToken(ctx context.Context, r api.TokenRequest) (t api.Token, err error) {
	return t, c.call(ctx, http.MethodPost, "/tokens", r, &t)
}

// RevokeToken ends the API token with this ID.
func (c *Client) RevokeToken(ctx context.Context, id string) (api.Changed, error) {
	return c.change(ctx, http.MethodDelete, "/tokens/"+url.PathEscape(id), nil)
}

func messagePath(id string) string { return "/messages/" + url.PathEscape(id) }

// call sends in as JSON, when it is not nil, and reads the answer into out,
// when that is not nil.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	size := int64(0)
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body, size = bytes.NewReader(b), int64(len(b))
	}
	resp, err := c.do(ctx, method, path, body, size)
	if err != nil {
		return err
	}
	return c.decode(resp, out)
}

func (c *Client) decode(resp *http.Response, out any) error {
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	body := &bounded{resp.Body, c.most}
	err := json.NewDecoder(body).Decode(out)
	if err == nil {
		_, err = io.Copy(io.Discard, body) // to the end, so that the connection is used again
	}
	if err != nil {
		return fmt.Errorf("cannot read the node's answer to %s: %w", resp.Request.URL.Path, err)
	}
	return nil
}

// bounded reads at most so many bytes; more are an error.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p[:min(int64(len(p)), b.left+1)])
	if b.left -= int64(n); b.left < 0 {
		return 0, errors.New("it is too large")
	}
	return n, err
}

// expectFrom is the size of an upload from which it waits for the node's
// consent: below, asking costs more than sending in vain.
const expectFrom = 1 << 20

// do sends one request. An answer with a status of 300 or above is an *Error.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader, size int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+api.Prefix+path, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		if req.ContentLength = size; size == 0 {
			// To the transport, a body of length 0 is one of unknown length.
			_ = req.Body.Close()
			req.Body = http.NoBody
		}
		if size < 0 || size >= expectFrom {
			req.Header.Set("Expect", "100-continue")
		}
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	if resp.StatusCode >= http.StatusMultipleChoices { // a redirection is none that a node gives
		defer resp.Body.Close()
		return nil, readError(resp)
	}
	return resp, nil
}
