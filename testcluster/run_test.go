package testcluster_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"chainmail/node"
	"chainmail/node/api"
	"chainmail/node/client"
	"chainmail/testcluster"
	"chainmail/testcluster/local"
	"chainmail/testcluster/support"
)

// TestProcesses: the scenario of the virtual cluster with the real program.
func TestProcesses(t *testing.T) {
	c := testcluster.Processes(t, support.Program(t), testcluster.Options{Nodes: 3, Replicas: testcluster.All})
	stop := c.Load("a", "b", "c")
	time.Sleep(time.Second)
	c.Kill("b")
	c.Send("a", 20)
	c.Start("b")
	c.Send("b", 20)
	stop()
	c.Check()
	c.Kill("c")
	c.Replace("c")
	c.Check()
}

// screen is what a person sees.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *screen) shows(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(s.text.String(), text)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// TestRun: what make run does, twice on the same directory.
func TestRun(t *testing.T) {
	base, err := local.FreeBasePort(2)
	if err != nil {
		t.Fatal(err)
	}
	dir := support.ShortDir(t)
	o := local.RunOptions{Nodes: 2, Dir: dir, Copies: 2, Replicas: -1, BasePort: base, Program: support.Program(t)}
	t.Setenv("CHAINMAIL_DISK_MIN_FREE", "1MiB")
	msg := []byte("Subject: Hello\r\n\r\nHi\r\n")
	for round := range 2 {
		out, end := runCluster(t, o)
		p, err := local.New(local.Options{Dir: dir, BasePort: base})
		if err != nil {
			t.Fatal(err)
		}
		support.Dial(t, p.Addr("a", "smtp"), "EHLO test").Data(msg, 1, 1)
		b := client.New(node.SocketPath(filepath.Join(dir, "b")))
		eventually(t, 10*time.Second, "the mail is on the other node", func() bool {
			s, err := b.Status(t.Context())
			return err == nil && s.Receipts == uint64(round)+1
		})
		b.Close()
		if err := end(); err != nil {
			t.Errorf("round %d ended with %v", round, err)
		}
		if !out.shows("The data is kept in " + dir) {
			t.Errorf("it does not say where the data is:\n%s", out)
		}
		if conn, err := net.Dial("tcp", p.Addr("b", "http")); err == nil {
			conn.Close()
			t.Error("node b lives on")
		}
	}
}

// TestRunMoreAndFewerNodes: a node that joined by hand starts with the others, one
// that was drained does not any more, and neither needs another number. That it
// was drained is also seen where no disk knows of it yet.
func TestRunMoreAndFewerNodes(t *testing.T) {
	base, err := local.FreeBasePort(3)
	if err != nil {
		t.Fatal(err)
	}
	dir := support.ShortDir(t)
	o := local.RunOptions{Nodes: 2, Dir: dir, BasePort: base, Program: support.Program(t)}
	t.Setenv("CHAINMAIL_DISK_MIN_FREE", "1MiB")
	t.Setenv("CHAINMAIL_LIMITS_LEAVE_GRACE", "1s")
	p, err := local.New(local.Options{Program: o.Program, Dir: dir, BasePort: base})
	if err != nil {
		t.Fatal(err)
	}
	_, end := runCluster(t, o)
	if err := p.Join(t.Context(), "c", "a"); err != nil {
		t.Fatal(err)
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
	out, end := runCluster(t, o)
	if want := dir + " holds a, b, c: starting all three."; !out.shows(want) {
		t.Errorf("it does not say %q:\n%s", want, out)
	}
	before := map[string][]byte{}
	view := func(name string) string { return filepath.Join(dir, name, "cluster", "view.json") }
	for _, name := range []string{"a", "b", "c"} {
		if before[name], err = os.ReadFile(view(name)); err != nil {
			t.Fatal(err)
		}
	}
	left := "b has left this cluster; its mail stays in " + dir + "/b."
	if _, err := p.Run(t.Context(), "a", "drain-node", "b"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "it is told that b has left", func() bool { return out.shows(left) })
	if err := end(); err != nil {
		t.Error(err)
	}
	rounds := []func(){func() {}, func() {
		for name, b := range before {
			if err := os.WriteFile(view(name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}, func() {}}
	for i, prepare := range rounds {
		prepare()
		out, end := runCluster(t, o)
		eventually(t, 10*time.Second, "it is told that b has left", func() bool { return out.shows(left) })
		if out.shows("Node b ended") {
			t.Errorf("round %d: it says how to start b again:\n%s", i, out)
		}
		for name, runs := range map[string]bool{"a": true, "b": false, "c": true} {
			conn, err := net.Dial("tcp", p.Addr(name, "smtp"))
			if (err == nil) != runs {
				t.Errorf("round %d: connecting to %s: %v", i, name, err)
			}
			if err == nil {
				conn.Close()
			}
		}
		if err := end(); err != nil {
			t.Errorf("round %d ended with %v", i, err)
		}
	}
}

// runCluster does what make run does until the returned function, as Ctrl-C,
// ends it.
func runCluster(t *testing.T, o local.RunOptions) (out *screen, end func() error) {
	t.Helper()
	out = new(screen)
	o.Out = io.MultiWriter(out, t.Output())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- local.Run(ctx, o) }()
	end = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = end() }) // told by who ended it before
	eventually(t, 2*time.Minute, "the cluster is up", func() bool {
		select {
		case err := <-done:
			t.Fatalf("it ended: %v\n%s", err, out)
		default:
		}
		return out.shows("Ctrl-C stops all nodes")
	})
	return out, end
}

// TestRunBalancer: one address for mail and one for HTTP, which outlive nodes;
// twice on the same directory, and nothing stays behind.
func TestRunBalancer(t *testing.T) {
	needBalancer(t)
	base, err := local.FreeBasePort(3)
	if err != nil {
		t.Fatal(err)
	}
	dir := support.ShortDir(t)
	o := local.RunOptions{Nodes: 3, Dir: dir, Replicas: -1, BasePort: base, Balancer: true, Program: support.Program(t)}
	t.Setenv("CHAINMAIL_DISK_MIN_FREE", "1MiB")
	acked := 0
	for round := range 2 {
		out, end := runCluster(t, o)
		p, err := local.New(local.Options{Dir: dir, BasePort: base})
		if err != nil {
			t.Fatal(err)
		}
		smtp, front := p.Addr(local.Balancer, "smtp"), "http://"+p.Addr(local.Balancer, "http")
		if want := "The cluster takes mail on " + smtp + ", and answers HTTP on " + front; !out.shows(want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
		send := func() {
			t.Helper()
			for range 10 {
				msg := fmt.Appendf(nil, "Subject: Mail %d\r\n\r\nHi\r\n", acked)
				support.Dial(t, smtp, "EHLO test").Data(msg, 1, 1)
				acked++
			}
		}
		send()
		expectReady(t, front)
		victim := regexp.MustCompile(`kill -9 ([0-9]+)`).FindStringSubmatch(out.String())
		if victim == nil {
			t.Fatalf("it does not say how to kill a node:\n%s", out)
		}
		pid, err := strconv.Atoi(victim[1])
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "the death of the node is told", func() bool { return out.shows("Node c ended (signal: killed). To start it again") })
		send()
		expectReady(t, front)
		b := client.New(node.SocketPath(filepath.Join(dir, "b")))
		eventually(t, 30*time.Second, "all mail is on a node that lives", func() bool {
			s, err := b.Status(t.Context())
			return err == nil && s.Messages == uint64(acked)
		})
		for m, err := range b.Messages(t.Context(), client.Query{}) {
			if err != nil {
				t.Fatal(err)
			}
			if addr := m.Receipts[0].Client; !strings.HasPrefix(addr, "127.0.0.1:") {
				t.Errorf("round %d: a receipt names the client %s, not the one before the balancer", round, addr)
			}
		}
		b.Close()
		if err := end(); err != nil {
			t.Errorf("round %d ended with %v", round, err)
		}
		if left := processesOf(t, dir); len(left) > 0 {
			t.Errorf("round %d leaves processes: %s", round, strings.Join(left, "; "))
		}
		if conn, err := net.Dial("tcp", smtp); err == nil {
			conn.Close()
			t.Error("the balancer lives on")
		}
	}
}

// TestRunBalancerDies: that is told like the death of a node, and how to start
// it again, which works.
func TestRunBalancerDies(t *testing.T) {
	needBalancer(t)
	base, err := local.FreeBasePort(1)
	if err != nil {
		t.Fatal(err)
	}
	dir := support.ShortDir(t)
	t.Setenv("CHAINMAIL_DISK_MIN_FREE", "1MiB")
	out, _ := runCluster(t, local.RunOptions{Nodes: 1, Dir: dir, BasePort: base, Balancer: true, Program: support.Program(t)})
	p, err := local.New(local.Options{Dir: dir, BasePort: base})
	if err != nil {
		t.Fatal(err)
	}
	smtp := p.Addr(local.Balancer, "smtp")
	row := regexp.MustCompile(`(?m)^lb +([0-9]+) `).FindStringSubmatch(out.String())
	if row == nil {
		t.Fatalf("it does not name the balancer's process:\n%s", out)
	}
	pid, err := strconv.Atoi(row[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	again := regexp.MustCompile(`The balancer ended \(.*\)\. To start it again, in another terminal:\n  (.*)\n`)
	eventually(t, 30*time.Second, "the death of the balancer is told", func() bool { return again.MatchString(out.String()) })
	if conn, err := net.Dial("tcp", smtp); err == nil {
		conn.Close()
		t.Error("somebody listens for the balancer that is dead")
	}
	words := strings.Fields(again.FindStringSubmatch(out.String())[1])
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // how it ends is not what is tested here
	})
	eventually(t, 30*time.Second, "mail is taken again", func() bool { return mailReply(smtp) == "250" })
}

// TestRunNetNS: what it prints is what reaches nodes on hosts of their own, by
// the cards that it says can be pulled; and no host stays behind.
func TestRunNetNS(t *testing.T) {
	needHosts(t)
	needBalancer(t)
	dir, program := support.ShortDir(t), support.Program(t)
	t.Setenv("CHAINMAIL_DISK_MIN_FREE", "1MiB")
	out, end := runCluster(t, local.RunOptions{Nodes: 2, Dir: dir, NetNS: true, Balancer: true, Program: program})
	space := regexp.MustCompile(`ip netns exec (chainmail-[0-9]+-[0-9]+-)client swaks --server (192\.0\.2\.100:25) `).FindStringSubmatch(out.String())
	if space == nil {
		t.Fatalf("it does not say how to send mail:\n%s", out)
	}
	load := func() {
		t.Helper()
		sends(t, nil, "ip", "netns", "exec", space[1]+"client", program, "load", "--target", space[2], "--count", "20", "--sessions", "4")
	}
	load()
	pull := regexp.MustCompile(`\n  (ip -n \S+ link set chain-b down)\n  (ip -n \S+ link set chain-b up)\n`).FindStringSubmatch(out.String())
	cut := regexp.MustCompile(`\n  (ip netns exec \S+ nft add .*)\n  (ip netns exec \S+ nft delete .*)\n`).FindStringSubmatch(out.String())
	if pull == nil || cut == nil {
		t.Fatalf("it does not say what harm can be done:\n%s", out)
	}
	a := client.New(node.SocketPath(filepath.Join(dir, "a")))
	defer a.Close()
	stateOfB := func(state string) func() bool {
		return func() bool {
			v, err := a.Cluster(t.Context())
			return err == nil && len(v.Members) == 2 && v.Members[1].State == state
		}
	}
	for _, harm := range [][]string{pull, cut} {
		sends(t, nil, "sh", "-c", harm[1])
		eventually(t, 30*time.Second, "after "+harm[1]+", a sees that b is away", stateOfB(api.StateUnreachable))
		load()
		sends(t, nil, "sh", "-c", harm[2])
		eventually(t, 30*time.Second, "after "+harm[2]+", a sees b again", stateOfB(api.StateActive))
	}
	eventually(t, 30*time.Second, "all mail is on a", func() bool {
		s, err := a.Status(t.Context())
		return err == nil && s.Messages == 60
	})
	if err := end(); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob("/run/netns/" + space[1] + "*"); len(left) > 0 {
		t.Errorf("hosts are left: %s", left)
	}
	if left := processesOf(t, dir); len(left) > 0 {
		t.Errorf("processes are left: %s", strings.Join(left, "; "))
	}
}

// expectReady asks the balancer's HTTP address for a node that takes mail.
func expectReady(t *testing.T, url string) {
	t.Helper()
	r, err := http.Get(url + "/readyz")
	if err != nil {
		t.Error(err)
		return
	}
	r.Body.Close()
	if r.StatusCode != http.StatusOK {
		t.Errorf("%s/readyz: %s", url, r.Status)
	}
}

// processesOf are the processes whose command line names a directory.
func processesOf(t *testing.T, dir string) (found []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if b, err := os.ReadFile(file); err == nil && bytes.Contains(b, []byte(dir)) { // else it has ended meanwhile
			found = append(found, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return found
}
