package testcluster_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/cookiejar"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chainmail/archive/record"
	"chainmail/node/api"
	"chainmail/testcluster/load"
	"chainmail/testcluster/local"
	"chainmail/testcluster/support"
)

// front is real nodes behind a real balancer.
type front struct {
	*local.Processes
	t     *testing.T
	names []string
	// follow lets the balancer learn of nodes that join; nil: it does so always.
	follow func()
	acked  bytes.Buffer // SHA-256 of all mail that was acknowledged; under mu while a load runs
	mu     sync.Mutex
}

// newFront starts nodes a, b … behind an nginx, which "chainmail lb run" owns.
func newFront(t *testing.T, nodes int) *front {
	t.Helper()
	if err := local.NeedNginx(); err != nil {
		missing(t, "libnginx-mod-stream")
	}
	f := newNodes(t, nodes)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := f.StartBalancer(ctx, f.names...); err != nil {
		t.Fatal(err)
	}
	return f
}

// newNodes starts nodes a, b …; a balancer for them is yet to come.
func newNodes(t *testing.T, nodes int) *front {
	t.Helper()
	base, err := local.FreeBasePort(nodes + 1)
	if err != nil {
		t.Fatal(err)
	}
	f := &front{t: t}
	f.Processes, err = local.New(local.Options{
		Program: support.Program(t), Dir: support.ShortDir(t), BasePort: base,
		Env: []string{"CHAINMAIL_DISK_MIN_FREE=1MiB", "CHAINMAIL_LIMITS_LEAVE_GRACE=8s"},
		Ended: func(name string, state *os.ProcessState) {
			if !state.Success() {
				t.Errorf("%s ended by itself: %v", name, state)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.StopAll(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			log, _ := os.ReadFile(f.LogFile(local.Balancer))
			t.Logf("the balancer says:\n%s", log)
		}
	})
	for i := range nodes {
		f.add(local.Name(i))
	}
	if _, err := f.Run(t.Context(), "a", "cluster", "set", "replicas=all"); err != nil {
		t.Fatal(err)
	}
	f.active()
	return f
}

// add lets another node join and starts it.
func (f *front) add(name string) {
	f.t.Helper()
	if len(f.names) > 0 {
		if err := f.Join(f.t.Context(), name, f.names[0]); err != nil {
			f.t.Fatal(err)
		}
	}
	f.start(name)
	f.names = append(f.names, name)
}

func (f *front) start(name string) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), time.Minute)
	defer cancel()
	if err := f.Start(ctx, name); err != nil {
		f.t.Fatal(err)
	}
}

func (f *front) active() {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), time.Minute)
	defer cancel()
	if err := f.AwaitActive(ctx, f.names...); err != nil {
		f.t.Fatal(err)
	}
}

// Write keeps the list of acknowledged mail of all loads.
func (f *front) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.acked.Write(b)
}

// load sends through the balancer.
func (f *front) load(o load.Options) load.Report {
	f.t.Helper()
	o.Target, o.Acked = f.Addr(local.Balancer, "smtp"), f
	r, err := load.Run(f.t.Context(), o)
	if err != nil {
		f.t.Errorf("the load failed: %v", err)
	}
	f.t.Logf("%s", r)
	return r
}

// taken counts the mails that each node took from clients.
func (f *front) taken() map[string]int {
	f.t.Helper()
	counts := map[string]int{}
	for _, name := range f.names {
		c := f.Client(name)
		self, err := c.Self(f.t.Context())
		c.Close()
		if err != nil {
			f.t.Fatalf("%s: %v", name, err)
		}
		for _, l := range self.Logs {
			held, err := record.ParseRanges(l.Held)
			if err != nil {
				f.t.Fatal(err)
			}
			if l.Origin == name {
				counts[name] += int(held.Count())
			}
		}
	}
	return counts
}

// awaitUse sends mail until the balancer gives some to a node.
func (f *front) awaitUse(name string) {
	f.t.Helper()
	before := f.taken()[name]
	eventually(f.t, 20*time.Second, "the balancer uses "+name, func() bool {
		o := load.Options{Target: f.Addr(local.Balancer, "smtp"), Acked: f, PerSession: 1, Count: 6, Sessions: 6}
		if r, err := load.Run(f.t.Context(), o); err != nil || r.Acked != 6 {
			f.t.Fatalf("a load of six mails: %+v, %v", r, err)
		}
		return f.taken()[name] > before
	})
}

// even checks that nobody took more than a tenth more or less than their share.
func (f *front) even(before, after map[string]int) {
	f.t.Helper()
	total := 0
	for _, name := range f.names {
		total += after[name] - before[name]
	}
	share := float64(total) / float64(len(f.names))
	for _, name := range f.names {
		got := after[name] - before[name]
		f.t.Logf("%s took %d of %d mails: %.3f of its share", name, got, total, float64(got)/share)
		if got := float64(got); got < 0.9*share || got > 1.1*share {
			f.t.Errorf("%s took %.0f mails of a share of %.0f", name, got, share)
		}
	}
}

// greeting asks for one by way of the balancer.
func (f *front) greeting(ctx context.Context) error {
	return greeting(ctx, f.Addr(local.Balancer, "smtp"), func(ctx context.Context, addr string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	})
}

// connections counts the clients of a node.
func (f *front) connections(name string) (n int) {
	f.t.Helper()
	c := f.Client(name)
	defer c.Close()
	s, err := c.Status(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	for _, l := range s.Listeners {
		if l.Kind == "smtp" {
			n += l.Connections
		}
	}
	return n
}

// check reads all acknowledged mail back from every node.
func (f *front) check(names ...string) {
	f.t.Helper()
	for _, name := range names {
		c := f.Client(name)
		var report load.CheckReport
		eventually(f.t, time.Minute, name+" has all mail", func() bool {
			var err error
			report, err = load.Check(f.t.Context(), bytes.NewReader(f.acked.Bytes()), load.Node(c), load.CheckOptions{})
			return err == nil && len(report.Missing) == 0
		})
		if !report.OK() {
			f.t.Errorf("%s: %d missing, %d altered, %d unreadable, %d twice", name, len(report.Missing), len(report.Altered), len(report.Unreadable), len(report.Duplicated))
		}
		c.Close()
	}
}

func TestFront(t *testing.T) {
	source := lookFor(t, "smtp-source", "postfix")
	newFront(t, 3).takesMail(t, source)
}

// takesMail: clients have one address. Mail is spread evenly; the death of a node
// costs those sessions only that were open on it; a drain costs nothing; a node
// that joins gets its share; and receipts name the clients. source is Postfix' client
// program, or empty to do without.
func (f *front) takesMail(t *testing.T, source string) {
	target := f.Addr(local.Balancer, "smtp")

	t.Run("clients", func(t *testing.T) {
		client := support.Dial(t, target, "EHLO client.example")
		msg := client.Data(crlf(peerText("a client of the balancer")), 1, 1)
		a := f.Client("a")
		defer a.Close()
		eventually(t, 10*time.Second, "a has the mail", func() bool {
			m, err := a.Message(t.Context(), fmt.Sprintf("%x", sha256.Sum256(msg)))
			if err == nil && m.Receipts[0].Client != client.Conn.LocalAddr().String() {
				t.Fatalf("the receipt says that the client was %s, not %s", m.Receipts[0].Client, client.Conn.LocalAddr())
			}
			return err == nil
		})
	})
	t.Run("even", func(t *testing.T) {
		before := f.taken()
		// A light load: under a heavy one a node that is slower gets less, as it should.
		f.load(load.Options{Sessions: 12, PerSession: 3, Count: 600, Rate: 300})
		f.even(before, f.taken())
		if source == "" {
			return
		}
		before = f.taken()
		if out := sends(t, nil, source, "-s", "60", "-R", "1", "-m", "600", "-l", "3000", "-f", "a@example.com", "-t", "b@example.com", target); out != "" {
			t.Errorf("smtp-source says %s", out)
		}
		f.even(before, f.taken())
	})
	t.Run("kill", func(t *testing.T) {
		done := make(chan load.Report, 1)
		go func() {
			done <- f.load(load.Options{Sessions: 30, Size: 400_000, Duration: 4 * time.Second})
		}()
		time.Sleep(2 * time.Second)
		open := int64(f.connections("b"))
		if err := f.Kill("b"); err != nil {
			t.Fatal(err)
		}
		newcomers := newPulse(t, f.greeting)
		r, seen := <-done, newcomers.end()
		t.Logf("%d sessions were open on b; %d sessions broke; no mail was taken for %.0f ms at most; %d newcomers were greeted within %v",
			open, r.Reconnects, r.LongestGap, seen.answered, seen.slowest.Round(time.Millisecond))
		if len(seen.failures) > 0 {
			t.Errorf("clients that came after the death of a node noticed it: %q", seen.failures)
		}
		if open == 0 || r.Reconnects > open || r.Unanswered > open || r.GivenUp+r.Refused+r.Tempfailed > 0 {
			t.Errorf("more than the %d sessions of the dead node were harmed: %+v", open, r)
		}
		f.check("a", "c")
		f.start("b")
		f.active()
	})
	t.Run("drain", func(t *testing.T) {
		f.awaitUse("b")
		done := make(chan load.Report, 1)
		go func() {
			done <- f.load(load.Options{Sessions: 8, PerSession: 5, Rate: 60, Duration: 13 * time.Second})
		}()
		time.Sleep(2 * time.Second)
		if _, err := f.Run(t.Context(), "a", "drain-node", "c"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := f.AwaitEnd(ctx, "c"); err != nil {
			t.Errorf("c did not leave in order: %v", err)
		}
		if r := <-done; r.Reconnects+r.Tempfailed+r.GivenUp+r.Refused+r.Unanswered > 0 || r.Complaint != "" {
			t.Errorf("clients noticed the drain: %+v", r)
		}
		f.names = []string{"a", "b"}
		f.check(f.names...)
	})
	t.Run("join", func(t *testing.T) {
		if f.follow != nil {
			f.follow()
		}
		done := make(chan load.Report, 1)
		go func() {
			done <- f.load(load.Options{Sessions: 8, PerSession: 1, Rate: 80, Duration: 7 * time.Second})
		}()
		f.add("d")
		f.active()
		f.awaitUse("d")
		if r := <-done; r.Reconnects+r.Tempfailed+r.GivenUp+r.Refused+r.Unanswered > 0 {
			t.Errorf("clients noticed that the balancer took up a node: %+v", r)
		}
		before := f.taken()
		f.load(load.Options{Sessions: 12, PerSession: 3, Count: 600, Rate: 300})
		f.even(before, f.taken())
		f.check(f.names...)
	})
}

func TestFrontHTTP(t *testing.T) { newFront(t, 3).sticks(t) }

// sticks: through the balancer, a person's session stays on one node and goes on
// at another when that one dies.
func (f *front) sticks(t *testing.T) {
	secret, err := f.Run(t.Context(), "a", "token", "api", "--name", "test")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range f.names {
		c := f.Client(name)
		eventually(t, 10*time.Second, name+" knows the token", func() bool {
			tokens, err := c.Tokens(t.Context())
			return err == nil && slices.ContainsFunc(tokens, func(k api.Token) bool { return k.Name == "test" })
		})
		c.Close()
	}
	// ask tells which node answers; each time over a new connection.
	ask := func(client *http.Client, cookie string) string {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+f.Addr(local.Balancer, "http")+"/api/v1/status", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(secret))
		if cookie != "" {
			req.AddCookie(&http.Cookie{Name: "chainmail_session", Value: cookie})
		}
		req.Close = true
		resp, err := client.Do(req)
		if err != nil {
			t.Fatalf("session %s: %v", cookie, err)
		}
		defer resp.Body.Close()
		var status api.Status
		if err := json.NewDecoder(resp.Body).Decode(&status); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("session %s: %s, %v", cookie, resp.Status, err)
		}
		return status.Node
	}
	sessions := map[string][]string{} // by node
	for i := range 20 {
		cookie := fmt.Sprintf("session-%d", i)
		node := ask(http.DefaultClient, cookie)
		sessions[node] = append(sessions[node], cookie)
	}
	t.Logf("sessions: %v", sessions)
	if len(sessions) < 2 {
		t.Fatalf("20 sessions are all on one node: %v", sessions)
	}
	for node, cookies := range sessions {
		for _, cookie := range cookies {
			if again := ask(http.DefaultClient, cookie); again != node {
				t.Errorf("%s was on %s and is on %s", cookie, node, again)
			}
		}
	}
	// browsers keep what cookies they are given, and have no session yet.
	browsers := map[string]*http.Client{} // by the node that answered
	for range 50 {
		jar, err := cookiejar.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		browser := &http.Client{Jar: jar}
		browsers[ask(browser, "")] = browser
	}
	for node, browser := range browsers {
		for range 5 {
			if again := ask(browser, ""); again != node {
				t.Errorf("a browser was on %s and is on %s", node, again)
			}
		}
	}
	dies := "b"
	if sessions[dies] == nil || browsers[dies] == nil {
		dies = "c"
	}
	if err := f.Kill(dies); err != nil {
		t.Fatal(err)
	}
	for node, browser := range browsers {
		next := ask(browser, "")
		if next == dies || node != dies && next != node {
			t.Errorf("a browser was on %s and is on %s after the death of %s", node, next, dies)
		}
		for range 5 {
			if again := ask(browser, ""); again != next {
				t.Errorf("a browser whose node died went on at %s and is on %s", next, again)
			}
		}
	}
	for node, cookies := range sessions {
		for _, cookie := range cookies {
			switch now := ask(http.DefaultClient, cookie); {
			case now == dies:
				t.Errorf("%s is answered by a dead node", cookie)
			case node != dies && now != node:
				t.Errorf("%s moved from %s, which lives, to %s", cookie, node, now)
			}
		}
	}
}
