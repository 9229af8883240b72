package httpd_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chainmail/node/api"
	"chainmail/node/httpd"
)

// node is a running server with a client for each of its listeners.
type node struct {
	t      *testing.T
	server *httpd.Server
	fake   *fakeArchive
	dir    string
	tcp    string // base URL
	token  string // one that works
	// clusterToken has the scope cluster.
	clusterToken string
	tokens       *fakeTokens
	stop         func() error
	status       api.Status // what the node says of itself; set it before a request
}

const adminBase = "http://admin"

// shortDir is a directory with a path short enough for a socket in it.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "httpd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func start(t *testing.T, change func(*httpd.Options)) *node {
	t.Helper()
	n := &node{t: t, fake: newFake(), dir: shortDir(t), tokens: newFakeTokens()}
	n.status = api.Status{Node: "n1", Version: "1.0", State: api.StateActive, StartedAt: epoch, DataDir: "data"}
	o := httpd.Options{
		Archive: n.fake, Begin: n.fake.begin, Status: func() api.Status { return n.status },
		Address: "127.0.0.1:0", Socket: httpd.DefaultSocket(n.dir), Tokens: n.tokens,
		Logger: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(), Grace: 5 * time.Second,
	}
	if change != nil {
		change(&o)
	}
	n.run(o)
	var made api.Token
	n.admin("POST", "/api/v1/tokens", `{"name":"tests"}`).json(http.StatusCreated, &made)
	n.token = made.Secret
	n.admin("POST", "/api/v1/tokens", `{"name":"balancer","scope":"cluster"}`).json(http.StatusCreated, &made)
	n.clusterToken = made.Secret
	return n
}

func (n *node) run(o httpd.Options) {
	n.t.Helper()
	var err error
	if n.server, err = httpd.New(o); err != nil {
		n.t.Fatal(err)
	}
	if err := n.server.Listen(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
	if a := n.server.Addr(); a != nil {
		n.tcp = "http://" + a.String()
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.server.Run(ctx) }()
	n.stop = func() error {
		cancel()
		err, ok := <-ended
		if ok {
			close(ended)
		}
		return err
	}
	n.t.Cleanup(func() {
		if err := n.stop(); err != nil {
			n.t.Errorf("Run: %v", err)
		}
	})
}

func (n *node) socket() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(n.dir, "admin.sock"))
		},
	}}
}

// reply is an answer whose form was checked against the OpenAPI description.
type reply struct {
	t *testing.T
	*http.Response
	body    []byte
	bodyErr error
}

// admin asks over the socket.
func (n *node) admin(method, path, body string, headers ...string) reply {
	n.t.Helper()
	return n.ask(n.socket(), adminBase, method, path, body, headers)
}

// public asks over TCP, with the headers given and no others.
func (n *node) public(method, path, body string, headers ...string) reply {
	n.t.Helper()
	return n.ask(&http.Client{Transport: &http.Transport{}}, n.tcp, method, path, body, headers)
}

// get asks over TCP with the token.
func (n *node) get(path string) reply {
	n.t.Helper()
	return n.public("GET", path, "", "Authorization", "Bearer "+n.token)
}

func (n *node) ask(c *http.Client, base, method, path, body string, headers []string) reply {
	n.t.Helper()
	defer c.CloseIdleConnections()
	req, err := http.NewRequestWithContext(n.t.Context(), method, base+path, strings.NewReader(body))
	if err != nil {
		n.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		n.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	r := reply{t: n.t, Response: resp}
	r.body, r.bodyErr = io.ReadAll(resp.Body)
	if r.bodyErr == nil {
		described(n.t).check(n.t, r)
	}
	return r
}

// want checks the status.
func (r reply) want(code int) reply {
	r.t.Helper()
	if r.StatusCode != code {
		r.t.Fatalf("%s %s: status %d, want %d: %s", r.Request.Method, r.Request.URL, r.StatusCode, code, r.body)
	}
	return r
}

// json checks the status and decodes the body.
func (r reply) json(code int, v any) {
	r.t.Helper()
	r.want(code)
	if err := json.Unmarshal(r.body, v); err != nil {
		r.t.Fatalf("%s: %v", r.body, err)
	}
}

// refused checks the status and that the error names every one of the words.
func (r reply) refused(code int, words ...string) {
	r.t.Helper()
	var e api.Error
	r.json(code, &e)
	for _, w := range words {
		if !strings.Contains(e.Error+" | "+e.Hint, w) {
			r.t.Errorf("%s %s: error %q, hint %q: want %q in it", r.Request.Method, r.Request.URL, e.Error, e.Hint, w)
		}
	}
}
