package testcluster

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"chainmail/archive/record"
	"chainmail/node"
	"chainmail/node/api"
	"chainmail/testcluster/netsim"
)

// archiver is a foreign mail server, the target of routes. It takes all mail,
// except where its script has it otherwise.
type archiver struct {
	t    *testing.T
	host *netsim.Host

	// script gives a reply instead of the usual 250, or "drop": at RCPT with
	// an empty text, in the middle of DATA and at its end. It is called with mu
	// held.
	script func(step, to string) string

	mu       sync.Mutex
	listener net.Listener
	conns    map[net.Conn]bool
	serving  sync.WaitGroup
	taken    map[string]map[record.Hash]int // by the address of the sender
}

const archiverHost = "foreign"

// withRoute makes a cluster whose nodes have a route to a foreign server; the
// server is not there yet.
func withRoute(t *testing.T, o Options, name string, change func(*node.Config, *node.Route)) (*Cluster, *archiver) {
	t.Helper()
	o = o.withDefaults()
	o.Config = func(k *node.Config) {
		r := node.Route{Name: name, Target: archiverHost + ":25", TLS: node.RouteTLS{Mode: node.TLSNone}, From: node.FromBeginning}
		change(k, &r)
		if r.Name != "" {
			k.Routes = []node.Route{r}
		}
	}
	n := netsim.New(o.Seed)
	x := &archiver{t: t, host: n.Host(archiverHost), conns: map[net.Conn]bool{}, taken: map[string]map[record.Hash]int{}}
	c := form(t, o, n, newVirtual(t, o, n))
	t.Cleanup(x.down)
	return c, x
}

// up begins to listen.
func (x *archiver) up() {
	x.t.Helper()
	l, err := x.host.Listen("tcp", ":25")
	if err != nil {
		x.t.Fatal(err)
	}
	x.mu.Lock()
	x.listener = l
	x.mu.Unlock()
	x.serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			x.mu.Lock()
			x.conns[conn] = true
			x.mu.Unlock()
			x.serving.Go(func() {
				x.serve(conn)
				conn.Close()
			})
		}
	})
}

// down ends listener and connections.
func (x *archiver) down() {
	x.mu.Lock()
	if x.listener != nil {
		x.listener.Close()
	}
	for conn := range x.conns {
		conn.Close()
	}
	clear(x.conns)
	x.mu.Unlock()
	x.serving.Wait()
}

func (x *archiver) serve(conn net.Conn) {
	r := bufio.NewReader(conn)
	say := func(line string) { _, _ = io.WriteString(conn, line+"\r\n") }
	say("220 foreign ESMTP")
	to := ""
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		verb, args, _ := strings.Cut(strings.TrimSpace(line), " ")
		answer := "250 2.0.0 ok"
		switch strings.ToUpper(verb) {
		case "RCPT":
			to, _, _ = strings.Cut(strings.TrimPrefix(args, "TO:<"), ">")
			if other := x.step("RCPT", to); other != "" {
				answer = other
			}
		case "DATA":
			say("354 go on")
			if answer = x.data(conn, r, to); answer == "drop" {
				return
			}
		case "QUIT":
			say("221 2.0.0 bye")
			return
		}
		say(answer)
	}
}

func (x *archiver) step(step, to string) string {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.script == nil {
		return ""
	}
	return x.script(step, to)
}

// data reads a mail, and keeps it when it says 250.
func (x *archiver) data(conn net.Conn, r *bufio.Reader, to string) string {
	if x.step("MIDDLE", to) == "drop" {
		_, _ = r.Peek(1) // some of it has come
		return "drop"
	}
	var text strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return "drop"
		}
		if line == ".\r\n" {
			break
		}
		text.WriteString(strings.TrimPrefix(line, "."))
	}
	answer := x.step("END", to)
	if answer == "drop" || answer != "" && answer[0] != '2' {
		return answer
	}
	host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.taken[host] == nil {
		x.taken[host] = map[record.Hash]int{}
	}
	x.taken[host][sha256.Sum256([]byte(text.String()))]++
	return "250 2.0.0 taken"
}

// missing says which of these mails it has not taken from a host, how often it
// should have: any number when times is 0.
func (x *archiver) missing(from string, mails []mail, times int) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	var problems []error
	for _, m := range mails {
		if got := x.taken[from][m.hash]; got == 0 || times > 0 && got != times {
			problems = append(problems, fmt.Errorf("mail %d came %d times", m.n, got))
		}
	}
	return few(problems)
}

// extra says what it has taken from a host beyond these mails.
func (x *archiver) extra(from string, mails []mail) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	known := map[record.Hash]bool{}
	for _, m := range mails {
		known[m.hash] = true
	}
	var problems []error
	for h := range x.taken[from] {
		if !known[h] {
			problems = append(problems, fmt.Errorf("message %v was not to come from there", h))
		}
	}
	return few(problems)
}

func (c *Cluster) route(name string) (api.Route, error) {
	v, err := c.View(name)
	if err != nil {
		return api.Route{}, err
	}
	if len(v.Routes) != 1 {
		return api.Route{}, fmt.Errorf("%s has %d routes", name, len(v.Routes))
	}
	return v.Routes[0], nil
}

// idle waits until a node has nothing left to send.
func (c *Cluster) idle(name string, limit time.Duration) {
	c.t.Helper()
	c.Eventually(limit, "the route of "+name+" has sent all", func() error {
		r, err := c.route(name)
		if err == nil && (r.State != "idle" || r.Backlog > 0) {
			err = fmt.Errorf("it is %+v", r)
		}
		return err
	})
}

// TestRouteInTrouble: whatever a foreign server does, all mail that it does not
// refuse for good arrives, byte for byte; what it refuses is shown, and sent
// again when asked for.
func TestRouteInTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, x := withRoute(t, Options{Nodes: 2}, "second", func(k *node.Config, r *node.Route) {
			if k.Name != "a" {
				r.Name = ""
			}
		})
		a := c.Net.Host("a").IP().String()

		// It is down.
		c.Send("a", 30)
		c.Send("b", 20)
		c.Settle()
		c.Eventually(time.Minute, "the trouble is shown", func() error {
			r, err := c.route("a")
			if err != nil {
				return err
			}
			v, err := c.View("a")
			if err != nil || r.State != "retrying" || r.Backlog != 50 || r.Sent != 0 || r.Oldest == nil || v.Verdict != api.Yellow ||
				!slices.ContainsFunc(v.Reasons, func(s string) bool {
					return strings.HasPrefix(s, "route second: ") && strings.Contains(s, "connection refused")
				}) {
				return fmt.Errorf("route %+v, %s: %q, %w", r, v.Verdict, v.Reasons, err)
			}
			return nil
		})

		// It is up, does not want anything at the first attempt, breaks off some
		// in the middle or just before it says that it has them, and never wants
		// two of them.
		attempts, dropped := map[string]int{}, 0
		never := map[string]string{
			"mail7@archive.example":  "RCPT",
			"mail33@archive.example": "END",
		}
		x.script = func(step, to string) string {
			switch {
			case never[to] == step:
				return "550 5.7.1 not that one"
			case step == "RCPT":
				if attempts[to]++; attempts[to] == 1 {
					return "451 4.7.1 greylisted, come again"
				}
			case attempts[to] == 2 && len(to)%2 == 0 && dropped < 8:
				dropped++
				return "drop"
			}
			return ""
		}
		x.up()
		c.Send("a", 10)
		c.idle("a", 2*time.Hour)
		acked := c.ledger.acknowledged()
		wanted := slices.DeleteFunc(slices.Clone(acked), func(m mail) bool { return never[fmt.Sprintf("mail%d@archive.example", m.n)] != "" })
		if err := errors.Join(x.missing(a, wanted, 0), x.extra(a, wanted)); err != nil {
			t.Error(err)
		}
		if dropped != 8 || len(wanted) != len(acked)-2 {
			t.Errorf("%d connections were dropped, %d of %d mails are wanted", dropped, len(wanted), len(acked))
		}

		// The refused ones.
		parked, err := c.Client("a").Parked(t.Context(), "second")
		c.must(err, "list what is parked")
		var positions []string
		for _, p := range parked {
			i := slices.IndexFunc(acked, func(m mail) bool { return m.position == p.Position })
			if i < 0 || acked[i].hash.String() != p.SHA256 || acked[i].n != 7 && acked[i].n != 33 || p.Reply != "550 5.7.1 not that one" || p.Attempts == 0 {
				t.Errorf("parked is %+v", p)
			}
			positions = append(positions, p.Position)
		}
		v, err := c.View("a")
		const told = "route second: mails refused for good by foreign:25: 2; see chainmail route parked second"
		if len(parked) != 2 || err != nil || v.Verdict != api.Yellow || !slices.Contains(v.Reasons, told) {
			t.Errorf("%d mails are parked, status is %s: %q, %v", len(parked), v.Verdict, v.Reasons, err)
		}
		if routes, err := c.Client("a").Routes(t.Context()); err != nil || len(routes) != 1 || routes[0].Parked != 2 {
			t.Errorf("the routes are %+v, %v", routes, err)
		}

		// A power cut does not forget them; a retry sends one, then all.
		c.Kill("a")
		c.Start("a")
		c.Settle()
		c.idle("a", time.Hour)
		x.mu.Lock()
		clear(never)
		x.mu.Unlock()
		for i, ask := range [][]string{positions[:1], nil} {
			if n, err := c.Client("a").Retry(t.Context(), "second", ask); err != nil || n != 1 {
				t.Errorf("retry %d: %d mails, %v", i, n, err)
			}
			c.idle("a", time.Hour)
			if r, err := c.route("a"); err != nil || r.Parked != uint64(1-i) {
				t.Errorf("after retry %d: %+v, %v", i, r, err)
			}
		}
		if err := errors.Join(x.missing(a, acked, 0), x.extra(a, acked)); err != nil {
			t.Error(err)
		}
		c.Eventually(time.Minute, "all is well", func() error {
			if v, err := c.View("a"); err != nil || v.Verdict != api.Green {
				return fmt.Errorf("it is %s: %q, %w", v.Verdict, v.Reasons, err)
			}
			return nil
		})
		if _, err := c.Client("a").Parked(t.Context(), "third"); err == nil || !strings.Contains(err.Error(), `no route "third"`) {
			t.Errorf("a route that is not there: %v", err)
		}
		c.Check()
	})
}

// TestRouteGoesOn: a node that is stopped, and one that loses power, goes on
// with its route where it was.
func TestRouteGoesOn(t *testing.T) {
	for _, what := range []node.RouteSend{node.SendAll, node.SendOwn} {
		t.Run(string(what), func(t *testing.T) { synctest.Test(t, func(t *testing.T) { routeGoesOn(t, what) }) })
	}
}

func routeGoesOn(t *testing.T, what node.RouteSend) {
	c, x := withRoute(t, Options{Nodes: 2}, "second", func(k *node.Config, r *node.Route) {
		r.Send = what
		if k.Name != "a" {
			r.Name = ""
		}
	})
	a := c.Net.Host("a").IP().String()
	c.Net.SetLink("a", archiverHost, netsim.Link{Latency: 50 * time.Millisecond}) // so that it takes its time
	x.up()
	stop := c.Load("a", "b")
	for i := range 4 {
		time.Sleep(2 * time.Second)
		switch i {
		case 0:
			c.Restart("a")
		case 1:
			c.Kill("a")
			time.Sleep(3 * time.Second)
			c.Start("a")
		case 2:
			x.down()
			c.KillAtSync("a", 15)
			c.Cut("a", "b") // nobody confirms where its log ends, so it begins a new one
			c.Start("a")
			c.Heal()
			x.up()
		case 3:
			c.Crash("a")
			c.Start("a")
		}
	}
	stop()
	c.Settle()
	c.idle("a", time.Hour)
	acked := c.ledger.acknowledged()
	if what == node.SendOwn { // in whichever of its logs
		acked = slices.DeleteFunc(acked, func(m mail) bool { return m.node != "a" })
	}
	if len(acked) < 30 {
		t.Errorf("only %d mails were acknowledged", len(acked))
	}
	if err := x.missing(a, acked, 0); err != nil {
		t.Error(err)
	}
	sent, again := 0, 0
	for _, n := range x.taken[a] {
		sent, again = sent+n, again+n-1
	}
	if again > sent/3 {
		t.Errorf("%d of %d mails were sent again: it begins from the start", again, sent)
	}
	x.mu.Lock()
	before := sent
	x.mu.Unlock()
	c.Restart("a")
	time.Sleep(time.Minute)
	sent = 0
	for _, n := range x.taken[a] {
		sent += n
	}
	if sent != before {
		t.Errorf("an orderly restart without new mail sent %d mails again", sent-before)
	}
	c.Check()
}

// TestRoutesOfAllNodes: with "own", the foreign server gets every mail once,
// from the node that took it; with "all", from every node.
func TestRoutesOfAllNodes(t *testing.T) {
	for _, what := range []node.RouteSend{node.SendOwn, node.SendAll} {
		t.Run(string(what), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, x := withRoute(t, Options{Nodes: 3, Replicas: All}, "second", func(_ *node.Config, r *node.Route) { r.Send = what })
				x.up()
				for _, name := range []string{"a", "b", "c"} {
					c.Send(name, 15)
				}
				c.Cut("a", "b")
				c.Send("a", 5)
				c.Send("b", 5)
				c.Heal()
				c.Settle()
				for _, name := range []string{"a", "b", "c"} {
					c.idle(name, time.Hour)
					mails := c.ledger.acknowledged()
					if what == node.SendOwn {
						mails = slices.DeleteFunc(mails, func(m mail) bool { return m.node != name })
					}
					from := c.Net.Host(name).IP().String()
					if err := errors.Join(x.missing(from, mails, 1), x.extra(from, mails)); err != nil {
						t.Errorf("from %s: %v", name, err)
					}
				}
				c.Check()
			})
		})
	}
}
