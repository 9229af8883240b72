package httpd_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"chainmail/node/api"
	"chainmail/node/httpd"
)

const joinBody = `{"token":"t","name":"c","role":"data","csr":"AAEC","addresses":{"http":"h:1"},"version":"2","of_tomorrow":1}`

// clusterRequests are one good request for each operation of the cluster.
var clusterRequests = []struct {
	method, path, body string
	code               int
	asked              string // of the node
}{
	{"GET", "/cluster", "", 200, "cluster"},
	{"GET", "/cluster/self", "", 200, "self"},
	{"GET", "/cluster/digests?log=4f2a9c1be0d37786&segment=3", "", 200, "segment 4f2a9c1be0d37786 3"},
	{"GET", "/cluster/digests?log=4f2a9c1be0d37786&first=1025&last=2048", "", 200, "digests 4f2a9c1be0d37786 1025-2048"},
	{"POST", "/cluster/join", joinBody, 200, "join c token t csr \x00\x01\x02"},
	{"POST", "/cluster/tokens", `{"valid_seconds":60}`, 201, "token for 1m0s"},
	{"POST", "/cluster/tokens", `{}`, 201, "token for 1h0m0s"},
	{"PATCH", "/cluster/policies", `{"copies":2}`, 200, "policies copies 2"},
	{"POST", "/cluster/members/b/drain", "", 200, "drain b"},
	{"DELETE", "/cluster/members/b/drain", "", 200, "stay b"},
	{"POST", "/cluster/members/b/move", `{"after":"a"}`, 200, "move b after a"},
	{"DELETE", "/cluster/members/b", "", 200, `remove b force ""`},
	{"DELETE", "/cluster/members/b?force=b", "", 200, `remove b force "b"`},
	{"GET", "/cluster/members/b/safe-to-stop", "", 200, "safe to stop b"},
	{"POST", "/cluster/keys/rotate", "", 200, "rotate"},
	{"GET", "/routes", "", 200, ""},
	{"GET", "/routes/piler/parked", "", 200, "parked piler"},
	{"POST", "/routes/piler/retry", `{"positions":["4f2a9c1be0d37786:1"]}`, 200, "retry piler [4f2a9c1be0d37786:1]"},
	{"POST", "/routes/piler/retry", `{"positions":[]}`, 200, "retry piler []"},
}

func TestClusterOperations(t *testing.T) {
	n, f, _ := startCluster(t, nil)
	skew, onlyThere := -0.5, uint64(3)
	f.cluster = api.Cluster{
		ID: "c1", Node: "a", Verdict: api.Yellow, Reasons: []string{"b: unreachable"}, Epoch: 7, Leader: "a", Voters: []string{"a", "b"},
		Policies: api.Policies{Copies: 2, WhenShort: "accept", AckTimeout: 5}, At: epoch, Routes: f.Routes(),
		Members: []api.Member{
			{Name: "a", Role: "data", State: api.StateActive, Addresses: map[string]string{"http": "h:1"}, Backlog: &api.Backlog{}, Self: &api.SelfReport{Store: fakeStore.String(), Time: epoch}},
			{
				Name: "b", Role: "data", State: api.StateUnreachable, Addresses: map[string]string{}, ClockSkew: &skew, Seen: epoch,
				Backlog: &api.Backlog{Receipts: 3, Oldest: &epoch, Lost: 1, LostAt: []string{"x:1-1"}}, OutOfReach: &onlyThere, Link: &api.Link{State: "connecting", Since: epoch},
			},
			{Name: "w", Role: "witness", State: api.StateJoining, Addresses: map[string]string{}},
		},
	}
	for _, r := range clusterRequests {
		f.fail(nil)
		got := n.admin(r.method, "/api/v1"+r.path, r.body).want(r.code)
		if f.last() != r.asked {
			t.Errorf("%s %s: the node was asked for %q, want %q", r.method, r.path, f.last(), r.asked)
		}
		if bytes.Contains(got.body, []byte(":null")) && r.path != "/cluster" && r.path != "/cluster/self" {
			t.Errorf("%s %s: null in %s", r.method, r.path, got.body)
		}
	}
	var c api.Cluster
	n.get("/api/v1/cluster").json(http.StatusOK, &c)
	if c.Members[2].Backlog != nil || *c.Members[1].ClockSkew != skew || c.Members[1].Backlog.Bytes != nil || *c.Members[1].OutOfReach != onlyThere {
		t.Errorf("%+v", c)
	}
}

// hinted is an error that says what to do.
type hinted struct{ error }

func (hinted) Hint() string { return "stop it first" }

// TestClusterRefusals: the node chooses status and words.
func TestClusterRefusals(t *testing.T) {
	n, f, _ := startCluster(t, nil)
	for _, r := range clusterRequests {
		for _, code := range []int{http.StatusConflict, http.StatusServiceUnavailable, http.StatusNotFound} {
			_, op, _ := described(t).find(r.method, strings.Split("/api/v1"+r.path, "?")[0])
			if _, possible := op.Responses[fmt.Sprint(code)]; !possible || r.asked == "" {
				continue
			}
			f.fail(fmt.Errorf("of no interest: %w", &httpd.StatusError{Code: code, Text: "no majority", Hint: "start b"}))
			n.admin(r.method, "/api/v1"+r.path, r.body).refused(code, "no majority", "start b")
			if code == http.StatusConflict {
				f.fail(hinted{errors.New("b is alive")})
				n.admin(r.method, "/api/v1"+r.path, r.body).refused(code, "b is alive", "stop it first")
			}
		}
		if r.asked != "" {
			f.fail(errDisk)
			n.admin(r.method, "/api/v1"+r.path, r.body).refused(http.StatusInternalServerError, "input/output error")
		}
	}
}

func TestClusterWords(t *testing.T) {
	n, f, _ := startCluster(t, nil)
	for _, r := range []struct{ method, path, body, word string }{
		{"PATCH", "/cluster/policies", `{}`, "backfill_rate_bytes"},
		{"PATCH", "/cluster/policies", `{"copies":0}`, "copies is 0"},
		{"PATCH", "/cluster/policies", `{"replicas":-1}`, "replicas is -1"},
		{"PATCH", "/cluster/policies", `{"when_short":"drop"}`, "tempfail"},
		{"PATCH", "/cluster/policies", `{"ack_timeout_seconds":0}`, "above 0"},
		{"PATCH", "/cluster/policies", `{"ack_timeout_seconds":1e9}`, "300"},
		{"PATCH", "/cluster/policies", `{"backfill_rate_bytes":-1}`, "backfill"},
		{"PATCH", "/cluster/policies", `{"balancers":["192.0.2.1","lb"]}`, `"lb" is no IP address`},
		{"PATCH", "/cluster/policies", `{"copis":2}`, "copis"},
		{"PATCH", "/cluster/policies", `{"copies":2}{}`, "more than one"},
		{"PATCH", "/cluster/policies", ``, "send JSON"},
		{"POST", "/cluster/tokens", `{"valid_seconds":-1}`, "-1"},
		{"POST", "/cluster/tokens", `{"valid_seconds":99999999}`, "2592000"},
		{"POST", "/cluster/join", `{"name":"c"}`, "join-node"},
		{"POST", "/cluster/join", `{"name":"` + strings.Repeat("c", 70_000) + `"}`, "too large"},
		{"POST", "/cluster/members/b/move", `{"after":"b"}`, "b cannot follow itself | name another member"},
		{"POST", "/cluster/members/b/move", `{}`, "no member is named"},
		{"DELETE", "/cluster/members/b?force=a", ``, "repeat the member's name"},
		{"GET", "/cluster/digests?log=1&segment=1", ``, "16 hexadecimal"},
		{"GET", "/cluster/digests?log=4f2a9c1be0d37786", ``, "first and last"},
		{"GET", "/cluster/digests?log=4f2a9c1be0d37786&first=1&last=1025", ``, "1024"},
		{"GET", "/cluster/digests?log=4f2a9c1be0d37786&first=0&last=1", ``, "from 1"},
		{"GET", "/cluster/digests?log=4f2a9c1be0d37786&segment=1&last=1", ``, "without"},
		{"GET", "/cluster/digests?log=4f2a9c1be0d37786&segment=18446744073709551615", ``, "segment is"},
		{"POST", "/routes/piler/retry", `{"positions":["x"]}`, "route parked piler"},
	} {
		n.admin(r.method, "/api/v1"+r.path, r.body).refused(http.StatusBadRequest, r.word)
	}
	n.admin("GET", "/api/v1/routes/filer/parked", "").refused(http.StatusNotFound, "filer", "its routes are piler")
	if f.last() != "" {
		t.Errorf("the node was asked for %q", f.last())
	}
}

// TestNoCluster: a node on its own says so.
func TestNoCluster(t *testing.T) {
	n := start(t, nil)
	for _, r := range clusterRequests {
		words := map[string]string{"cluster": "in no cluster", "digests": "keeps no mail", "routes": "no routes"}
		area := strings.Split(r.path, "/")[1]
		if strings.Contains(r.path, "digests") {
			area = "digests"
		}
		if r.path == "/routes" {
			var l api.RouteList
			n.admin("GET", "/api/v1/routes", "").json(http.StatusOK, &l)
			continue
		}
		n.admin(r.method, "/api/v1"+r.path, r.body).refused(http.StatusNotFound, words[area])
	}
	n.admin("POST", "/api/v1/cluster/verify", "").refused(http.StatusNotFound, "in no cluster")
}

// TestWhoMayDoWhat asks each operation as everybody that there is.
func TestWhoMayDoWhat(t *testing.T) {
	n, f, ca := startCluster(t, nil)
	f.verify = func(context.Context, func(api.ClusterVerifyEvent)) error { return nil }
	member, removed, nobody := ca.client("b", httpd.Protocol), ca.client("x", httpd.Protocol), ca.client("", httpd.Protocol)
	for _, rt := range n.server.RouteInfos() {
		method, path, _ := strings.Cut(rt.Pattern, " ")
		path = strings.NewReplacer("{id}", "abcd1234", "{name}", "b").Replace(path)
		join := strings.HasSuffix(path, "/join")
		body := ""
		if join {
			body = joinBody
		}
		switch got := n.as(member, method, path, body); {
		case rt.Admin:
			got.refused(http.StatusForbidden, "administrator")
		case got.StatusCode == http.StatusUnauthorized || got.StatusCode == http.StatusForbidden:
			t.Errorf("%s is refused to a member: %s", rt.Pattern, got.body)
		}
		switch {
		case rt.Open:
			n.as(removed, method, path, body).want(http.StatusOK)
			n.as(nobody, method, path, body).want(http.StatusOK)
		case join:
			n.as(removed, method, path, body).want(http.StatusOK)
			n.as(nobody, method, path, body).want(http.StatusOK)
			n.public(method, path, body).refused(http.StatusForbidden, "ALPN")
		case rt.Nodes:
			n.as(removed, method, path, body).refused(http.StatusForbidden, "x was removed", "join-node")
			n.as(nobody, method, path, body).refused(http.StatusForbidden, "ALPN")
		default:
			n.as(removed, method, path, body).refused(http.StatusForbidden, "x was removed")
			n.as(nobody, method, path, body).refused(http.StatusUnauthorized, "token")
		}
		if !rt.Open && !rt.Admin && !rt.Nodes {
			if got := n.as(nobody, method, path, body, "Authorization", "Bearer "+n.token); got.StatusCode == http.StatusUnauthorized || got.StatusCode == http.StatusForbidden {
				t.Errorf("%s is refused to a token: %s", rt.Pattern, got.body)
			}
		}
	}
}

// TestRemovedWhileConnected: a certificate is looked at for each request.
func TestRemovedWhileConnected(t *testing.T) {
	members := map[string]bool{"b": true}
	n, _, ca := startCluster(t, func(o *httpd.Options) {
		o.Peer = func(s tls.ConnectionState) (string, error) {
			if name := s.PeerCertificates[0].Subject.CommonName; members[name] {
				return name, nil
			}
			return "", errors.New("removed")
		}
	})
	c := ca.client("b", httpd.Protocol)
	defer c.CloseIdleConnections()
	ask := func() int {
		resp, err := c.Get(strings.Replace(n.tcp, "http:", "https:", 1) + "/api/v1/cluster/self")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode
	}
	if code := ask(); code != http.StatusOK {
		t.Fatal(code)
	}
	members["b"] = false
	if code := ask(); code != http.StatusForbidden {
		t.Errorf("status %d after the removal", code)
	}
}

// TestOnePort: plain text, people's TLS and nodes' TLS on one port.
func TestOnePort(t *testing.T) {
	people := newAuthority(t)
	operator := &tls.Config{Certificates: []tls.Certificate{people.node("people")}}
	t.Run("plain", func(t *testing.T) {
		n, _, ca := startCluster(t, nil)
		n.get("/api/v1/status").want(http.StatusOK)
		n.as(ca.client("b", httpd.Protocol), "GET", "/api/v1/cluster/self", "").want(http.StatusOK)
		for _, sni := range []string{"", api.NodeName, "www.example.org"} {
			c := ca.balancer(sni)
			n.as(c, "GET", "/readyz", "").want(http.StatusOK)
			n.as(c, "GET", "/api/v1/cluster", "").refused(http.StatusUnauthorized, "token")
			n.as(c, "GET", "/api/v1/cluster", "", "Authorization", "Bearer "+n.clusterToken).want(http.StatusOK)
			n.as(c, "GET", "/api/v1/cluster/self", "").refused(http.StatusForbidden, "ALPN")
			n.as(c, "POST", "/api/v1/cluster/join", joinBody).refused(http.StatusForbidden, "ALPN")
		}
		// A member's certificate proves nothing without the protocol of nodes.
		n.as(ca.client("b", "http/1.1"), "GET", "/api/v1/cluster/self", "").refused(http.StatusForbidden, "ALPN")
		if _, err := people.client("", "h2", "http/1.1").Get(strings.Replace(n.tcp, "http:", "https:", 1) + "/readyz"); err == nil {
			t.Error("a certificate of another authority")
		}
	})
	t.Run("nodes only", func(t *testing.T) {
		n, _, ca := startCluster(t, func(o *httpd.Options) { o.PublicTLS = nil })
		n.as(ca.client("b", httpd.Protocol), "GET", "/api/v1/cluster/self", "").want(http.StatusOK)
		if _, err := ca.balancer("").Get(strings.Replace(n.tcp, "http:", "https:", 1) + "/readyz"); err == nil {
			t.Error("TLS for people without a certificate for people")
		}
	})
	t.Run("TLS", func(t *testing.T) {
		n, _, ca := startCluster(t, func(o *httpd.Options) { o.TLS = operator })
		n.as(ca.client("b", httpd.Protocol), "GET", "/api/v1/cluster/self", "").want(http.StatusOK)
		n.as(people.client("", "http/1.1"), "GET", "/api/v1/cluster/self", "").refused(http.StatusForbidden, "ALPN")
		n.as(people.client(""), "GET", "/readyz", "").want(http.StatusOK)
		n.as(ca.balancer(api.NodeName), "GET", "/readyz", "").want(http.StatusOK)
		n.as(ca.balancer("Node.Chainmail.Internal"), "GET", "/readyz", "").want(http.StatusOK)
		if _, err := ca.client("b", "http/1.1").Get(strings.Replace(n.tcp, "http:", "https:", 1) + "/readyz"); err == nil {
			t.Error("people were shown the cluster's certificate")
		}
		resp, err := http.Get(n.tcp + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(b), "HTTPS") {
			t.Errorf("plain HTTP was answered %s %s", resp.Status, b)
		}
	})
	t.Run("no cluster", func(t *testing.T) {
		n := start(t, func(o *httpd.Options) { o.TLS = operator })
		if _, err := people.client("b", httpd.Protocol).Get(strings.Replace(n.tcp, "http:", "https:", 1) + "/readyz"); err == nil {
			t.Error("the protocol of nodes was taken")
		}
	})
}

// TestSilentConnections: who says nothing holds up nobody, and not the end.
func TestSilentConnections(t *testing.T) {
	n, _, _ := startCluster(t, nil)
	for range 20 {
		c, err := net.Dial("tcp", strings.TrimPrefix(n.tcp, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	n.public("GET", "/readyz", "").want(http.StatusOK)
	if err := n.stop(); err != nil {
		t.Error(err)
	}
}

// TestConfigurationOfTheMoment: nodes' TLS may change while the server runs.
func TestConfigurationOfTheMoment(t *testing.T) {
	ca := newAuthority(t)
	now := &tls.Config{Certificates: []tls.Certificate{ca.node("a")}}
	n, _, _ := startCluster(t, func(o *httpd.Options) {
		o.ClusterTLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return now, nil }}
	})
	n.as(ca.client("", httpd.Protocol), "POST", "/api/v1/cluster/join", joinBody).want(http.StatusOK)
	ca = newAuthority(t)
	now = &tls.Config{Certificates: []tls.Certificate{ca.node("a")}}
	n.as(ca.client("", httpd.Protocol), "POST", "/api/v1/cluster/join", joinBody).want(http.StatusOK)
}

func TestJoinIsRateLimited(t *testing.T) {
	n, f, ca := startCluster(t, nil)
	c := ca.client("", httpd.Protocol)
	for range 20 {
		n.as(c, "POST", "/api/v1/cluster/join", joinBody).want(http.StatusOK)
	}
	for range 20 { // more than the time of the test allows again
		if r := n.as(c, "POST", "/api/v1/cluster/join", joinBody); r.StatusCode != http.StatusOK {
			r.refused(http.StatusTooManyRequests, "127.0.0.1", "repeat")
			if r.Header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
			if f.last() == "" {
				t.Error("nothing was asked")
			}
			return
		}
	}
	t.Error("no limit")
}

func TestVerifyCluster(t *testing.T) {
	n, f, _ := startCluster(t, nil)
	f.verify = func(_ context.Context, report func(api.ClusterVerifyEvent)) error {
		for i := range uint64(10_000) {
			ev := api.ClusterVerifyEvent{Checked: i + 1, Total: 10_000}
			switch i {
			case 41:
				ev.Log, ev.Node, ev.Problem, ev.At = fakeStore.String(), "b", "differs from a", []string{"x:1", "x:2"}
			case 42:
				ev.Node, ev.Problem = "c", "does not answer"
			}
			report(ev)
		}
		return nil
	}
	lines := strings.Split(strings.TrimSpace(string(n.admin("POST", "/api/v1/cluster/verify", "").want(http.StatusOK).body)), "\n")
	if len(lines) < 4 || len(lines) > 20 {
		t.Errorf("%d lines", len(lines))
	}
	if last := lines[len(lines)-1]; last != `{"checked":10000,"total":10000,"done":true,"bad":3}` {
		t.Errorf("last line %s", last)
	}

	f.verify = func(context.Context, func(api.ClusterVerifyEvent)) error { return errDisk }
	if r := n.admin("POST", "/api/v1/cluster/verify", "").want(http.StatusOK); !strings.HasSuffix(string(r.body), `"bad":0,"error":"input/output error"}`+"\n") {
		t.Errorf("failed: %s", r.body)
	}
}

// TestVerifyClusterEnds with the server, also while nothing is reported.
func TestVerifyClusterEnds(t *testing.T) {
	n, f, _ := startCluster(t, nil)
	f.verify = func(ctx context.Context, _ func(api.ClusterVerifyEvent)) error {
		<-ctx.Done()
		return ctx.Err()
	}
	c := n.dial()
	if _, err := io.WriteString(c, "POST /api/v1/cluster/verify HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if err := n.stop(); err != nil {
		t.Error(err)
	}
	rest, err := io.ReadAll(c)
	if err != nil || !strings.Contains(string(rest), "the node is shutting down") {
		t.Errorf("%v: %s", err, rest)
	}
}

// TestOwnNetwork: both listeners may live on a network of a test's own.
func TestOwnNetwork(t *testing.T) {
	var asked []string
	pipes := map[string]*pipeListener{"tcp": newPipeListener(), "unix": newPipeListener()}
	o := options(t)
	o.Socket, o.Address = "/"+strings.Repeat("virtual", 30)+"/admin.sock", "a:8025"
	o.Listen = func(network, address string) (net.Listener, error) {
		asked = append(asked, network+" "+address[:2])
		return pipes[network], nil
	}
	s, err := httpd.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	for _, network := range []string{"tcp", "unix"} {
		c := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return pipes[network].dial() }}}
		resp, err := c.Get("http://node/healthz")
		if err != nil {
			t.Fatal(err)
		}
		var h api.Health
		if err := json.NewDecoder(resp.Body).Decode(&h); err != nil {
			t.Error(err)
		}
		_ = resp.Body.Close()
		c.CloseIdleConnections()
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := strings.Join(asked, ","); got != "unix /v,tcp a:" {
		t.Errorf("asked for %s", got)
	}
}

// pipeListener accepts the ends of net.Pipe.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{make(chan net.Conn), make(chan struct{})}
}

func (l *pipeListener) dial() (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case l.conns <- there:
		return here, nil
	case <-time.After(10 * time.Second):
		return nil, errors.New("nobody accepts")
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error { close(l.closed); return nil }

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }
