package testcluster_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chainmail/lb"
	"chainmail/node/api"
	"chainmail/node/client"
	"chainmail/testcluster"
	"chainmail/testcluster/local"
	"chainmail/testcluster/netns"
	"chainmail/testcluster/support"
)

// needHosts skips a test where there can be no network namespaces.
func needHosts(t *testing.T) {
	t.Helper()
	needRoot(t, "makes network namespaces")
	lookFor(t, "ip", "iproute2")
	lookFor(t, "nft", "nftables")
}

// needBalancer skips a test where there is no nginx that passes on SMTP.
func needBalancer(t *testing.T) {
	t.Helper()
	lookFor(t, "nginx", "nginx")
	if err := local.NeedNginx(); err != nil {
		missing(t, "libnginx-mod-stream")
	}
}

// TestTwoNetworks: nodes with a card on the clients' network and one on their
// own, a balancer with both, and clients who see nothing but the balancer. On
// each network in turn something goes wrong under load; mail goes on by the one
// address, nothing that was acknowledged is lost, and what was wrong is told.
func TestTwoNetworks(t *testing.T) {
	needHosts(t)
	needBalancer(t)
	c := testcluster.Hosts(t, support.Program(t), testcluster.Options{Nodes: 3, Replicas: testcluster.All})
	c.StartBalancer()
	for _, tt := range []struct {
		name string
		harm func() error
		// from does not reach a service of to then.
		from, to, service string
		// says is what the status of a and of c tells of it; empty: all is well for
		// the nodes, who speak on the chain network.
		says, saysC string
		// leaves is the node that the balancer does not reach: it leaves its
		// configuration, and from then on no client waits for it.
		leaves string
		// most is the longest time without an accepted mail that is forgiven, on a
		// machine that does much else.
		most time.Duration
	}{
		{
			"the nodes' network of one is cut", func() error { return cutOff(c.Lab, netns.Chain, "c", "a", "b") },
			"a", "c", "chain",
			"c: unreachable", "there is no leader", "", 10 * time.Second,
		},
		{
			"the clients' network of one is cut", func() error { return c.Lab.Isolate(netns.Front, "c") },
			local.Balancer, "c", "smtp",
			"", "", "c", 10 * time.Second,
		},
		{
			"the chain cable of one is pulled", func() error { return c.Lab.Unplug(netns.Chain, "b") },
			"a", "b", "chain",
			"b: unreachable", "b: unreachable", "", 10 * time.Second,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.leaves != "" {
				expectBalanced(t, c, tt.leaves, true) // after what was before
			}
			traffic := begin(t, c)
			time.Sleep(2 * time.Second)
			before := c.Acknowledged()
			begun := time.Now()
			if err := tt.harm(); err != nil {
				t.Fatal(err)
			}
			expectNoWay(t, c, tt.from, c.Processes.Addr(tt.to, tt.service))
			for name, want := range map[string]string{"a": tt.says, "c": tt.saysC} {
				if want != "" {
					expectStatus(t, c, name, want)
				}
			}
			var left time.Time
			if tt.leaves != "" {
				expectBalanced(t, c, tt.leaves, false)
				left = time.Now()
				time.Sleep(2 * time.Second) // at least
			}
			time.Sleep(time.Until(begun.Add(8 * time.Second)))
			if tt.says == "" {
				expectStatus(t, c, "a", "GREEN")
			}
			during := c.Acknowledged() - before
			c.Heal()
			healed := time.Now()
			if tt.leaves != "" {
				t.Logf("%s left the balancer's configuration %v after it", tt.leaves, left.Sub(begun).Round(10*time.Millisecond))
				expectBalanced(t, c, tt.leaves, true)
				t.Logf("and was in it again %v after the end of it", time.Since(healed).Round(10*time.Millisecond))
			}
			c.Eventually(30*time.Second, "all is green", func() error { return notGreen(c) })
			green := time.Since(healed)
			gap, wait, failures := traffic.end()
			if tt.leaves != "" {
				before, after := traffic.slowest(begun, left), traffic.slowest(left, healed)
				t.Logf("the slowest mail over a new connection that was begun before it left: %v; after: %v", before.Round(time.Millisecond), after.Round(time.Millisecond))
				if after >= nginxWaits {
					t.Errorf("clients still wait for it: %v", after)
				}
			}
			t.Logf("%d mails accepted meanwhile, %v the longest time without one, %v the longest that one took over a new connection, of which %d failed (%s); green %v after the end of it",
				during, gap.Round(time.Millisecond), wait.Round(time.Millisecond), len(failures), strings.Join(failures, "; "), green.Round(10*time.Millisecond))
			if gap > tt.most {
				t.Errorf("no mail was accepted for %v, more than %v", gap, tt.most)
			}
			if during < 50 {
				t.Errorf("only %d mails were accepted in 8 s", during)
			}
			c.Check()
		})
	}
	t.Run("receipts name the client", func(t *testing.T) {
		want := c.Lab.Addr(netns.Front, local.Client).String() + ":"
		for m, err := range c.Client("a").Messages(t.Context(), client.Query{}) {
			if err != nil {
				t.Fatal(err)
			}
			if got := m.Receipts[0].Client; !strings.HasPrefix(got, want) {
				t.Fatalf("a receipt names %s, want %s and a port", got, want)
			}
		}
	})
	t.Run("HTTP by the one address", func(t *testing.T) {
		c.Crash("c") // the balancer may know that or not
		web := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return c.Processes.Dial(ctx, local.Client, addr)
		}}, Timeout: 20 * time.Second}
		defer web.CloseIdleConnections()
		for range 10 {
			r, err := web.Get("http://" + c.Processes.Addr(local.Balancer, "http") + "/readyz")
			if err != nil {
				t.Fatal(err)
			}
			r.Body.Close()
			if r.StatusCode != http.StatusOK {
				t.Errorf("readyz: %s", r.Status)
			}
		}
	})
}

// cutOff cuts a host off from some others on a network.
func cutOff(lab *netns.Lab, card netns.Card, host string, others ...string) error {
	for _, other := range others {
		if err := lab.Cut(card, host, other); err != nil {
			return err
		}
	}
	return nil
}

// expectNoWay: what was done to the networks is in force.
func expectNoWay(t *testing.T, c *testcluster.OnHosts, from, addr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if conn, err := c.Processes.Dial(ctx, from, addr); err == nil {
		conn.Close()
		t.Errorf("%s reaches %s", from, addr)
	}
}

// nginxWaits is how long nginx waits for a connection with a node that does not
// answer.
const nginxWaits = 2 * time.Second

// expectBalanced waits until a node gets new connections, or none for mail since
// its SMTP port does not answer.
func expectBalanced(t *testing.T, c *testcluster.OnHosts, node string, want bool) {
	t.Helper()
	c.Eventually(15*time.Second, fmt.Sprintf("the balancer passes mail on to %s: %v", node, want), func() error {
		text, err := os.ReadFile(filepath.Join(c.Processes.DataDir(local.Balancer), "nginx.conf"))
		out := "# " + node + ": "
		if !want {
			out += string(lb.NoSMTP)
		}
		if err == nil && strings.Contains(string(text), out) == want {
			err = fmt.Errorf("its file says\n%s", text)
		}
		return err
	})
}

// notGreen says which node does not see everything well.
func notGreen(c *testcluster.OnHosts) error {
	for _, name := range c.Running() {
		if v, err := c.View(name); err != nil || v.Verdict != api.Green {
			return fmt.Errorf("%s says %s: %q, %w", name, v.Verdict, v.Reasons, err)
		}
	}
	return nil
}

// expectStatus waits for what an operator reads.
func expectStatus(t *testing.T, c *testcluster.OnHosts, name, want string) {
	t.Helper()
	c.Eventually(15*time.Second, fmt.Sprintf("the status of %s says %q", name, want), func() error {
		said, err := c.Processes.Run(t.Context(), name, "status")
		if !strings.Contains(said, want) {
			return fmt.Errorf("%w: it says\n%s", err, said)
		}
		return nil
	})
}

// traffic is mail to the balancer: over connections that stay, and over new ones.
type traffic struct {
	stop     func() int
	cancel   context.CancelFunc
	visitors sync.WaitGroup
	longest  atomic.Int64 // time without an accepted mail

	mu       sync.Mutex
	visits   []visit
	failures []string
}

// visit is one mail over a connection of its own.
type visit struct {
	begun time.Time
	took  time.Duration
}

func begin(t *testing.T, c *testcluster.OnHosts) *traffic {
	ctx, cancel := context.WithCancel(t.Context())
	f := &traffic{stop: c.Load(local.Balancer, local.Balancer), cancel: cancel}
	t.Cleanup(cancel)
	for range 4 {
		f.visitors.Go(func() { f.visit(ctx, c) })
	}
	f.visitors.Go(func() { f.measure(ctx, c) })
	return f
}

// visit sends mails, each over a connection of its own.
func (f *traffic) visit(ctx context.Context, c *testcluster.OnHosts) {
	rest := time.NewTicker(100 * time.Millisecond)
	defer rest.Stop()
	for ctx.Err() == nil {
		begun := time.Now()
		err := c.Offer(local.Balancer, 1)
		f.mu.Lock()
		f.visits = append(f.visits, visit{begun, time.Since(begun)})
		if err != nil && ctx.Err() == nil {
			f.failures = append(f.failures, err.Error())
		}
		f.mu.Unlock()
		select {
		case <-rest.C:
		case <-ctx.Done():
		}
	}
}

// measure finds the longest time without an accepted mail.
func (f *traffic) measure(ctx context.Context, c *testcluster.OnHosts) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	last, count := time.Now(), c.Acknowledged()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if gap := time.Since(last); int64(gap) > f.longest.Load() {
			f.longest.Store(int64(gap))
		}
		if n := c.Acknowledged(); n > count {
			last, count = time.Now(), n
		}
	}
}

// end stops the traffic, and tells the longest time without an accepted mail,
// how long the slowest mail over a new connection took, and how such failed.
func (f *traffic) end() (longest, wait time.Duration, failures []string) {
	f.cancel()
	f.visitors.Wait()
	f.stop()
	return time.Duration(f.longest.Load()), f.slowest(time.Time{}, time.Now()), f.failures
}

// slowest is how long the slowest mail over a new connection took that was begun
// in some time.
func (f *traffic) slowest(from, to time.Time) (took time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, v := range f.visits {
		if !v.begun.Before(from) && v.begun.Before(to) {
			took = max(took, v.took)
		}
	}
	return took
}
