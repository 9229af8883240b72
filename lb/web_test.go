package lb_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"chainmail/lb"
)

// webNode is a node's HTTP port: it tells who it is and what it was asked.
func webNode(t *testing.T, name string, pair []byte, release chan struct{}) *httptest.Server {
	t.Helper()
	cert, err := tls.X509KeyPair(pair, pair)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/events":
			w.Header().Set("Content-Type", "text/event-stream")
			fmt.Fprint(w, "data: one\n\n")
			_ = http.NewResponseController(w).Flush()
			<-release
			fmt.Fprint(w, "data: two\n\n")
		case "/upload": // answers while the body is still on its way
			first := make([]byte, 5)
			_, _ = io.ReadFull(r.Body, first)
			release <- struct{}{}
			n, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprintf(w, "%s and %d more", first, n)
		default:
			fmt.Fprintf(w, "%s for=%s proto=%s host=%s sni=%s uri=%s", name, strings.Join(r.Header["X-Forwarded-For"], "|"), r.Header.Get("X-Forwarded-Proto"), r.Host, r.TLS.ServerName, r.URL.RequestURI())
		}
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// ask is a request with cookies; it returns the answer's text and the node's
// cookie, if one was set.
func ask(t *testing.T, url string, cookies ...string) (text, node string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Forwarded-For", "198.51.100.66") // a lie
	if len(cookies) > 0 {
		req.Header.Set("Cookie", strings.Join(cookies, "; "))
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range resp.Cookies() {
		if c.Name == lb.NodeCookie {
			node = c.Value
		}
	}
	return string(body), node
}

func TestOwnNginxHTTP(t *testing.T) {
	pair := certificate(t)
	release := make(chan struct{})
	w := ownWorld(t)
	nodes := map[string]*httptest.Server{}
	named := w.answer.Members[1].Addresses["http"] // of a, the peer
	for i, name := range []string{"b", "a"} {
		nodes[name] = webNode(t, name, pair, release)
		w.answer.Members[i].Addresses["http"] = nodes[name].Listener.Addr().String()
	}
	w.ca = pair[:strings.Index(string(pair), "-----BEGIN EC")]
	w.also = map[string]string{named: "a"}
	front := freeAddr(t)
	o := runOwned(t, w, t.TempDir(), freeAddr(t), func(l *lb.Layout, own *lb.Own) {
		l.HTTP, l.HTTPMode, l.CA, l.Source = []netip.AddrPort{front}, lb.Proxy, own.CAFile(), netip.MustParseAddr("127.0.0.2")
	})
	url := "http://" + front.String()

	text, node := ask(t, url+"/x?y=%20z")
	if want := fmt.Sprintf("%s for=127.0.0.1 proto=http host=%s sni=%s uri=/x?y=%%20z", node, front, lb.NodeName); text != want {
		t.Errorf("got %s, want %s", text, want)
	}
	for _, name := range []string{"a", "b"} { // the cookie decides, and is not set anew
		for range 4 {
			if text, set := ask(t, url, lb.NodeCookie+"="+name, lb.SessionCookie+"=whatever"); !strings.HasPrefix(text, name+" ") || set != "" {
				t.Errorf("the client of %s: %s, cookie %q", name, text, set)
			}
		}
	}
	spread := map[string]bool{}
	for i := range 32 { // else the session does
		session := fmt.Sprintf("%s=s%d", lb.SessionCookie, i)
		first, _ := ask(t, url, session)
		again, _ := ask(t, url, session, lb.NodeCookie+"=gone")
		if first[:1] != again[:1] {
			t.Errorf("session %d: %s, then %s", i, first, again)
		}
		spread[first[:1]] = true
	}
	if len(spread) != 2 {
		t.Errorf("all sessions are on one node: %v", spread)
	}

	t.Run("events are not held back", func(t *testing.T) {
		resp, err := http.Get(url + "/events")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		r := bufio.NewReader(resp.Body)
		if line, err := r.ReadString('\n'); line != "data: one\n" {
			t.Fatal(line, err)
		}
		release <- struct{}{}
		if rest, err := io.ReadAll(r); !strings.Contains(string(rest), "data: two") {
			t.Error(string(rest), err)
		}
	})
	t.Run("uploads are not held back", func(t *testing.T) {
		r, send := io.Pipe()
		go func() {
			fmt.Fprint(send, "hello")
			<-release // the node has it, and we are not done
			_, _ = send.Write(make([]byte, 3<<20))
			send.Close()
		}()
		resp, err := http.Post(url+"/upload", "message/rfc822", r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if text, err := io.ReadAll(resp.Body); string(text) != fmt.Sprintf("hello and %d more", 3<<20) {
			t.Errorf("%s %v %s", resp.Status, err, text)
		}
	})

	nodes["a"].CloseClientConnections()
	nodes["a"].Close()
	if text, set := ask(t, url, lb.NodeCookie+"=a"); !strings.HasPrefix(text, "b ") || set != "b" {
		t.Errorf("after a's death: %s, cookie %q", text, set)
	}
	w.change(func() { w.nodes["a"] = "dead" })
	o.until(t, "a is out", func() bool { return o.w.Status().Reloads == 2 })
	if text, set := ask(t, url, lb.NodeCookie+"=a"); !strings.HasPrefix(text, "b ") || set != "b" {
		t.Errorf("when a is out: %s, cookie %q", text, set)
	}
}

// TestOwnNginxVerifiesNodes: who has no certificate of the CA gets no request.
func TestOwnNginxVerifiesNodes(t *testing.T) {
	w := ownWorld(t)
	named := w.answer.Members[1].Addresses["http"]
	for i, name := range []string{"b", "a"} {
		w.answer.Members[i].Addresses["http"] = webNode(t, name, certificate(t), nil).Listener.Addr().String()
	}
	another := certificate(t)
	w.ca = another[:strings.Index(string(another), "-----BEGIN EC")]
	w.also = map[string]string{named: "a"}
	front := freeAddr(t)
	o := runOwned(t, w, t.TempDir(), freeAddr(t), func(l *lb.Layout, own *lb.Own) {
		l.HTTP, l.HTTPMode, l.CA = []netip.AddrPort{front}, lb.Proxy, own.CAFile()
	})
	if text, _ := ask(t, "http://"+front.String()); !strings.Contains(text, "502 Bad Gateway") {
		t.Error(text)
	}
	o.until(t, "nginx says why", func() bool { return strings.Contains(o.log.String(), "upstream SSL certificate verify error") })
}
