package lb_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"chainmail/lb"
	"chainmail/node/api"
)

// connect opens a connection to a node's SMTP port.
func (w *world) connect(ctx context.Context, to lb.Address) (net.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.answer.Members {
		if m.Addresses["smtp"] != to.String() {
			continue
		}
		w.visits[m.Name]++
		is := w.smtp[m.Name]
		if w.nodes[m.Name] == "dead" {
			is = "refused"
		}
		switch is {
		case "cut":
			w.mu.Unlock()
			defer w.mu.Lock()
			<-ctx.Done()
			return nil, ctx.Err()
		case "refused":
			return nil, errors.New("connection refused")
		}
		ours, theirs := net.Pipe()
		go smtpPort(theirs, is)
		return ours, nil
	}
	return nil, errors.New("no route to host")
}

// smtpPort greets who begins with the PROXY header of a health check, with what
// the specification gives for that: signature, version 2 and LOCAL, no family,
// no addresses.
func smtpPort(conn net.Conn, greeting string) {
	defer conn.Close()
	header := make([]byte, 16)
	_, err := io.ReadFull(conn, header)
	if want := "\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x20\x00\x00\x00"; err != nil || string(header) != want {
		return
	}
	switch greeting {
	case "mute":
		_, _ = conn.Read(header) // until it goes
		return
	case "":
		greeting = "220 a.example ESMTP"
	}
	if _, err := io.WriteString(conn, greeting+"\r\n"); err != nil {
		return
	}
	if line, _ := bufio.NewReader(conn).ReadString('\n'); line == "QUIT\r\n" {
		_, _ = io.WriteString(conn, "221 bye\r\n")
	}
}

// trusting is a world whose nodes trust the balancer.
func trusting(n int, change ...func(map[string]*api.Member)) *world {
	w := newWorld(members(n, change...))
	w.answer.Policies.Balancers = []string{"192.0.2.10"}
	return w
}

// TestWatchAsksTheSMTPPorts: the nodes' HTTP ports are on another network, so all
// of them say that they are well.
func TestWatchAsksTheSMTPPorts(t *testing.T) {
	for name, is := range map[string]string{
		"packets vanish": "cut", "refused": "refused", "it hangs": "mute", "it closes": "421 4.3.2 shutting down", "another service": "SSH-2.0-x",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				b := start(t, trusting(3, twoCards), dir, "10.0.0.1:8025")
				defer b.stop()
				b.expect(t, 10*time.Second, "mail abc, web abc")
				b.world.change(func() { b.smtp["c"] = is })
				b.expect(t, 2*time.Second, "mail abc, web abc")
				b.expect(t, 4*time.Second, "mail ab, web abc")
				const why = "its SMTP port does not answer"
				if s := b.w.Status(); len(s.Out) != 1 || s.Out[0] != (lb.NodeOut{Node: "c", Service: "smtp", Why: why}) {
					t.Errorf("%+v", s.Out)
				}
				r := httptest.NewRecorder()
				b.w.Handler(b.registry).ServeHTTP(r, httptest.NewRequest(http.MethodGet, "/metrics", nil))
				if want := `chainmail_lb_node_out{node="c",reason="` + why + `",service="smtp"} 1`; !strings.Contains(r.Body.String(), want) {
					t.Errorf("metrics lack %s", want)
				}
				time.Sleep(5 * time.Minute)
				for _, want := range []string{"c gets no new smtp connections: " + why, "see the network between them"} {
					if got := strings.Count(b.log.String(), want); got != 1 {
						t.Errorf("%q is told %d times in 5 minutes\n%s", want, got, b.log)
					}
				}
				b.world.change(func() { b.smtp["c"] = "" })
				b.expect(t, 4*time.Second, "mail abc, web abc")
				if b.count() != 3 {
					t.Errorf("%d installations, want 3", b.count())
				}
			})
		})
	}
}

// TestWatchTakesGreetingsForWell: those that say nothing of the node.
func TestWatchTakesGreetingsForWell(t *testing.T) {
	for _, is := range []string{
		"421 4.7.0 too many connections, try again later", // so the others have many too
		"554 5.7.1 your address may not use this archive", // the balancer's is no client's
		"220-several", "220",
	} {
		t.Run(is, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				b := start(t, trusting(3), dir, aHTTP)
				defer b.stop()
				b.expect(t, 10*time.Second, "mail abc, web abc")
				b.world.change(func() { b.smtp["c"] = is })
				b.expect(t, time.Minute, "mail abc, web abc")
			})
		})
	}
}

// TestRenderOfASilentPort: also HAProxy, which asks the HTTP port alone.
func TestRenderOfASilentPort(t *testing.T) {
	c := read(t, members(3), standard())
	c.Nodes[1].Mail = lb.NoSMTP
	nginx, err := lb.RenderNginx(c, standard(), lb.DebianNginx(), lb.Complete)
	if want := "server 192.0.2.2:25 down; # b: its SMTP port does not answer\n"; err != nil || strings.Count(string(nginx), want) != 1 {
		t.Errorf("%v: want %q in\n%s", err, want, nginx)
	}
	haproxy, err := lb.RenderHAProxy(c, standard(), lb.DebianHAProxy())
	if want := "server b 192.0.2.2:25 addr 192.0.2.2 port 8025 disabled # its SMTP port does not answer\n"; err != nil || strings.Count(string(haproxy), want) != 1 {
		t.Errorf("%v: want %q in\n%s", err, want, haproxy)
	}
}

// TestWatchDoesNotWaitForTLS: a port where TLS begins at once never greets, and
// that is told from one that does so no more.
func TestWatchDoesNotWaitForTLS(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, trusting(3), dir, aHTTP)
		defer b.stop()
		b.world.change(func() { b.smtp["a"], b.smtp["b"], b.smtp["c"] = "mute", "mute", "mute" })
		b.expect(t, time.Minute, "mail abc, web abc")
		if s := b.w.Status(); s.Problem != "" {
			t.Errorf("%+v", s)
		}
		b.world.change(func() { b.smtp["c"] = "cut" })
		b.expect(t, 6*time.Second, "mail ab, web abc")
	})
}

// TestWatchNeverEmptiesForSilence: it is more likely this balancer's own card.
func TestWatchNeverEmptiesForSilence(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, trusting(3), dir, aHTTP)
		defer b.stop()
		b.expect(t, 10*time.Second, "mail abc, web abc")
		b.world.change(func() { b.smtp["a"], b.smtp["b"], b.smtp["c"] = "cut", "cut", "cut" })
		b.expect(t, time.Minute, "mail abc, web abc")
		if s := b.w.Status(); !strings.Contains(s.Problem, "none can be reached from here") {
			t.Errorf("%+v", s)
		}
		b.world.change(func() { b.smtp["b"] = "" })
		b.expect(t, 10*time.Second, "mail b, web abc")
	})
}

// TestWatchAsksNoStrangersAndNoLeavers: a node that does not trust this balancer
// would take what it says for bad SMTP, and one that leaves may close.
func TestWatchAsksNoStrangersAndNoLeavers(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, newWorld(members(3)), dir, aHTTP)
		defer b.stop()
		visits := func(node string) (n int) {
			b.world.change(func() { n, b.visits[node] = b.visits[node], 0 })
			return n
		}
		b.world.change(func() { b.smtp["c"] = "cut" })
		b.expect(t, time.Minute, "mail abc, web abc")
		if n := visits("a"); n != 0 {
			t.Errorf("a is asked %d times and does not trust it", n)
		}
		b.world.change(func() { b.answer.Policies.Balancers = []string{"192.0.2.0/28"} })
		b.expect(t, 10*time.Second, "mail ab, web abc")
		visits("a")
		time.Sleep(time.Minute)
		if n := visits("a"); n < 55 || n > 61 {
			t.Errorf("a is asked %d times in a minute", n)
		}
		b.world.change(func() { b.answer.Members[2].State = api.StateDraining; b.nodes["a"] = api.StateDraining })
		b.expect(t, 10*time.Second, "mail b, web abc")
		visits("a")
		time.Sleep(time.Minute)
		if n := visits("a"); n != 0 {
			t.Errorf("a is asked %d times while it leaves", n)
		}
		b.world.change(func() { b.answer.Policies.Balancers = nil })
		b.expect(t, 10*time.Second, "mail bc, web abc")
	})
}

// TestWatchSeesADeadNodeBeforeOthersTell: nothing of it answers this balancer,
// which need not wait for the other members' word.
func TestWatchSeesADeadNodeBeforeOthersTell(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, trusting(3), dir, aHTTP)
		defer b.stop()
		b.expect(t, 10*time.Second, "mail abc, web abc")
		b.world.change(func() {
			well := b.answer
			for _, n := range []string{"a", "b", "w"} {
				b.views[n] = well
			}
			b.nodes["c"] = "dead"
		})
		b.expect(t, 6*time.Second, "mail ab, web ab")
		if b.count() != 2 || !strings.Contains(b.log.String(), "c gets no new smtp connections: unreachable") {
			t.Errorf("%d installations\n%s", b.count(), b.log)
		}
	})
}

// TestWatchTellsTheNetChange: what came and went while a reload was held back is
// not told, and nothing contradicts itself.
func TestWatchTellsTheNetChange(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, newWorld(members(3)), dir, aHTTP)
		defer b.stop()
		b.expect(t, time.Minute, "mail abc, web abc")
		for _, full := range []string{"a", "b"} { // two reloads may follow one another
			b.world.change(func() { b.nodes[full] = api.StateFull })
			time.Sleep(time.Second)
		}
		b.expect(t, 500*time.Millisecond, "mail c, web abc")
		b.world.change(func() { b.nodes["a"] = "" }) // comes and goes again
		time.Sleep(3 * time.Second)
		b.world.change(func() { b.nodes["a"], b.nodes["b"] = api.StateFull, "" })
		b.expect(t, 10*time.Second, "mail bc, web abc")
		lines := strings.Split(strings.TrimSpace(b.log.String()), "\n")
		last := lines[len(lines)-1]
		if !strings.Contains(last, `why="b gets new smtp connections again" files=`) {
			t.Error(b.log)
		}
	})
}
