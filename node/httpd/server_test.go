package httpd_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chainmail/archive"
	"chainmail/archive/record"
	"chainmail/node/api"
	"chainmail/node/httpd"
)

func newRegistry() *prometheus.Registry { return prometheus.NewRegistry() }

func options(t *testing.T) httpd.Options {
	dir, f := shortDir(t), newFake()
	return httpd.Options{
		Archive: f, Begin: f.begin, Status: func() api.Status { return api.Status{} },
		Socket: httpd.DefaultSocket(dir), Tokens: newFakeTokens(),
		Logger: slog.New(slog.DiscardHandler), Registry: newRegistry(),
	}
}

// TestRefusesToStart: each wrong set-up has one error that says what to do.
func TestRefusesToStart(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		change func(*httpd.Options)
		words  []string
	}{
		"no archive":      {func(o *httpd.Options) { o.Archive = nil }, []string{"Archive"}},
		"no socket":       {func(o *httpd.Options) { o.Socket = "" }, []string{"Socket"}},
		"negative size":   {func(o *httpd.Options) { o.MaxMessageSize = -1 }, []string{"-1"}},
		"long path":       {func(o *httpd.Options) { o.Socket = "/" + strings.Repeat("d", 107) }, []string{"108 bytes", "107", "--data-dir"}},
		"file, no socket": {func(o *httpd.Options) { write(o.Socket, "x") }, []string{"no socket", "--socket"}},
		"no directory":    {func(o *httpd.Options) { o.Socket += "/a/admin.sock" }, []string{"admin socket"}},
		"no tokens":       {func(o *httpd.Options) { o.Tokens = nil }, []string{"Tokens"}},
		"address taken":   {func(o *httpd.Options) { o.Address = taken.Addr().String() }, []string{taken.Addr().String(), "in use", "--http"}},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t)
			c.change(&o)
			s, err := httpd.New(o)
			if err == nil {
				if err = s.Listen(t.Context()); err == nil {
					_ = s.Close()
					t.Fatal("it started")
				}
			}
			for _, w := range c.words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q: want %q in it", err, w)
				}
			}
		})
	}
}

func TestSocket(t *testing.T) {
	n := start(t, nil)
	path := httpd.DefaultSocket(n.dir)
	info, err := os.Stat(path)
	if err != nil || info.Mode() != fs0600Socket {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}

	// A second node on the same directory leaves the first alone.
	o := options(t)
	o.Socket = path
	second, err := httpd.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Listen(t.Context()); err == nil || !strings.Contains(err.Error(), "already running") {
		t.Errorf("second node: %v", err)
	}
	n.admin("GET", "/healthz", "").want(http.StatusOK)

	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stays: %v", err)
	}
}

const fs0600Socket = os.ModeSocket | 0o600

// TestStaleSocket: what a killed node left does not hinder the next one.
func TestStaleSocket(t *testing.T) {
	n := start(t, func(o *httpd.Options) {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: o.Socket, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		_ = l.Close()
	})
	n.admin("GET", "/healthz", "").want(http.StatusOK)
}

func TestHealth(t *testing.T) {
	n := start(t, nil)
	for state, code := range map[string]int{
		api.StateActive: http.StatusOK, api.StateStarting: http.StatusServiceUnavailable,
		api.StateFull: http.StatusServiceUnavailable, api.StateDraining: http.StatusServiceUnavailable,
	} {
		n.status.State, n.status.Reason = state, "reason of "+state
		var h api.Health
		r := n.public("GET", "/readyz", "")
		r.json(code, &h)
		if h.State != state || h.Reason != n.status.Reason || bytes.Count(r.body, []byte("\n")) != 1 {
			t.Errorf("%s: %s", state, r.body)
		}
		n.public("GET", "/healthz", "").json(http.StatusOK, &h)
	}
}

func TestStatus(t *testing.T) {
	n := start(t, nil)
	n.fake.add("x", envelope("a@x.example"))
	n.status.Listeners = []api.Listener{{Name: "smtp", Kind: "smtp", Address: "127.0.0.1:25", Connections: 3}}
	n.status.Conflicts = []api.Conflict{{
		Position: "4f2a9c1be0d37786:3", Held: strings.Repeat("a", 64), Refused: strings.Repeat("b", 64), Peer: "b", At: epoch, Kept: "1111111111111111:9",
	}}
	var st api.Status
	n.get("/api/v1/status").json(http.StatusOK, &st)
	if st.Node != "n1" || st.Store != "4f2a9c1be0d37786" || st.Receipts != 1 || st.Disk.MinFree != 10 || len(st.Listeners) != 1 || st.Scrub.Bad != 1 || len(st.Scrub.Findings) != 1 {
		t.Errorf("%+v", st)
	}
	if len(st.Conflicts) != 1 || st.Conflicts[0] != n.status.Conflicts[0] {
		t.Errorf("%+v", st.Conflicts)
	}
}

func TestNoRoute(t *testing.T) {
	n := start(t, nil)
	n.public("GET", "/", "").refused(http.StatusNotFound, "openapi.json")
	n.public("GET", "/api/v1/nothing", "").refused(http.StatusNotFound, "/api/v1/nothing")
	r := n.public("PUT", "/api/v1/messages", "x")
	r.refused(http.StatusMethodNotAllowed, "PUT", "GET")
	if r.Header.Get("Allow") == "" {
		t.Error("no Allow")
	}
}

func TestPanicAndMetrics(t *testing.T) {
	var log bytes.Buffer
	n := start(t, func(o *httpd.Options) { o.Logger = slog.New(slog.NewJSONHandler(&log, nil)) })
	n.fake.statsBug = true
	n.get("/api/v1/status").refused(http.StatusInternalServerError, "internal error")
	metrics := string(n.public("GET", "/metrics", "").want(http.StatusOK).body)
	for _, line := range []string{
		`chainmail_http_requests_total{code="500",route="GET /api/v1/status"} 1`,
		`chainmail_http_requests_total{code="201",route="POST /api/v1/tokens"} 2`,
		`chainmail_http_request_seconds_count{route="GET /api/v1/status"} 1`,
	} {
		if !strings.Contains(metrics, line) {
			t.Errorf("metrics lack %s", line)
		}
	}
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"a bug in Stats", "fake_test.go"} {
		if !strings.Contains(log.String(), part) {
			t.Errorf("the log lacks %q", part)
		}
	}
	if strings.Contains(log.String(), n.token) {
		t.Error("the log has a secret")
	}
}

// TestStopFinishes: requests in flight get their answers.
func TestStopFinishes(t *testing.T) {
	n := start(t, nil)
	c := n.dial()
	if _, err := io.WriteString(c, "POST /api/v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\na"); err != nil {
		t.Fatal(err)
	}
	n.admin("GET", "/healthz", "") // accepted after c, so c's request is on its way
	stopped := make(chan error)
	go func() { stopped <- n.stop() }()
	for {
		probe, err := net.Dial("tcp", strings.TrimPrefix(n.tcp, "http://"))
		if err != nil {
			break // the listeners are closed
		}
		_ = probe.Close()
	}
	n.bare(c, "POST", "bc").want(http.StatusCreated)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestVerify(t *testing.T) {
	n := start(t, nil)
	n.fake.verify = func(_ context.Context, report func(archive.Progress)) error {
		for i := range uint64(10_000) {
			p := archive.Progress{Checked: i + 1, Total: 10_000, Bytes: int64(i)}
			if i == 41 {
				p.Finding = &archive.Finding{Position: record.Position{Store: fakeStore, Seq: 42}, Problem: "rot", FoundAt: epoch}
			}
			report(p)
		}
		return nil
	}
	r := n.admin("POST", "/api/v1/verify", "").want(http.StatusOK)
	lines := strings.Split(strings.TrimSpace(string(r.body)), "\n")
	if len(lines) < 3 || len(lines) > 20 {
		t.Errorf("%d lines", len(lines))
	}
	if last := lines[len(lines)-1]; last != `{"checked":10000,"total":10000,"bytes":9999,"done":true,"bad":1}` {
		t.Errorf("last line %s", last)
	}
	if !strings.Contains(string(r.body), `"finding":{"position":"4f2a9c1be0d37786:42","problem":"rot"`) {
		t.Errorf("no finding in %s", r.body)
	}

	n.fake.verify = func(context.Context, func(archive.Progress)) error { return errDisk }
	r = n.admin("POST", "/api/v1/verify", "").want(http.StatusOK)
	if !strings.HasSuffix(string(r.body), `"bad":0,"error":"input/output error"}`+"\n") {
		t.Errorf("failed: %s", r.body)
	}
}

// TestVerifyEnds: with its client, and with the server.
func TestVerifyEnds(t *testing.T) {
	for _, who := range []string{"client", "server"} {
		t.Run(who, func(t *testing.T) {
			n := start(t, nil)
			ended := make(chan error, 1)
			n.fake.verify = func(ctx context.Context, report func(archive.Progress)) error {
				for ctx.Err() == nil {
					report(archive.Progress{Total: 1})
				}
				ended <- context.Cause(ctx)
				return ctx.Err()
			}
			c := n.dial()
			if _, err := io.WriteString(c, "POST /api/v1/verify HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			if who == "client" {
				_ = c.Close()
				if err := <-ended; err == nil {
					t.Error("the verification was not told to end")
				}
				return
			}
			if err := n.stop(); err != nil {
				t.Error(err)
			}
			rest, err := io.ReadAll(c)
			if err != nil || !strings.Contains(string(rest), "the node is shutting down") {
				t.Errorf("%v: %s", err, rest)
			}
			if err := <-ended; err == nil {
				t.Error("the verification was not told to end")
			}
		})
	}
}

func TestTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	n := start(t, func(o *httpd.Options) {
		o.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	})
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}}
	base := strings.Replace(n.tcp, "http:", "https:", 1)
	r := n.fake.add(strings.Repeat("x", 1<<20), envelope("a@x.example"))
	n.fake.damagedAt[r.Hash] = 500_000
	n.ask(c, base, "GET", "/api/v1/status", "", []string{"Authorization", "Bearer " + n.token}).want(http.StatusOK)
	got := n.ask(c, base, "GET", fmt.Sprintf("/api/v1/messages/%s/raw", r.Hash), "", []string{"Authorization", "Bearer " + n.token}).want(http.StatusOK)
	if got.ProtoMajor != 2 || got.bodyErr == nil {
		t.Errorf("HTTP/%d, damaged message: %d bytes, error %v", got.ProtoMajor, len(got.body), got.bodyErr)
	}
}

// TestNoTCP: without an address there is only the socket.
func TestNoTCP(t *testing.T) {
	n := start(t, func(o *httpd.Options) { o.Address = "" })
	if n.server.Addr() != nil {
		t.Error("there is an address")
	}
	n.admin("GET", "/readyz", "").want(http.StatusOK)
}
