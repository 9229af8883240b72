package local

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chainmail/testcluster/netns"
)

// stub is a program that ignores its arguments.
func stub(t *testing.T, script string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "stub")
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return file
}

func processes(t *testing.T, o Options) *Processes {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPorts(t *testing.T) {
	p := processes(t, Options{BasePort: 2525})
	for _, tt := range []struct{ name, service, want string }{
		{"a", "smtp", "127.0.0.1:2525"},
		{"a", "http", "127.0.0.1:2529"},
		{"c", "gossip", "127.0.0.1:2547"},
		{Balancer, "smtp", "127.0.0.1:2425"},
		{Balancer, "http", "127.0.0.1:2429"},
	} {
		if got := p.Addr(tt.name, tt.service); got != tt.want {
			t.Errorf("%s of %s: %s, want %s", tt.service, tt.name, got, tt.want)
		}
	}
	for i, name := range []string{"a", "b", "z"} {
		if got := Index(name); got != []int{0, 1, 25}[i] || Name(got) != name {
			t.Errorf("index of %s: %d", name, got)
		}
	}
	for _, name := range []string{"", "A", "aa", "{"} {
		if Index(name) != -1 {
			t.Errorf("index of %q: %d", name, Index(name))
		}
	}
}

func TestTakenPort(t *testing.T) {
	base, err := FreeBasePort(2)
	if err != nil {
		t.Fatal(err)
	}
	p := processes(t, Options{BasePort: base})
	if err := p.Check("a", "b"); err != nil {
		t.Fatal(err)
	}
	u, err := net.ListenPacket("udp", p.Addr("b", "gossip"))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	err = p.Check("a", "b")
	if err == nil || !strings.Contains(err.Error(), "the gossip port of node b: ") || !strings.Contains(err.Error(), "choose another base port") {
		t.Errorf("a port that is taken: %v", err)
	}
	for _, tt := range []struct {
		base        int
		names, want string
	}{
		{65510, "d", "choose one up to 65501"},
		{0, "a", "choose one from 1"},
		{100, Balancer, "choose one from 101"},
	} {
		err := processes(t, Options{BasePort: tt.base}).Check(tt.names)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("ports that there are not, from %d on: %v", tt.base, err)
		}
	}
}

func TestNodeThatEndsAtOnce(t *testing.T) {
	told := make(chan string, 1)
	p := processes(t, Options{
		Program: stub(t, "echo 'chainmail: no good' >&2; exit 3"), BasePort: 2525,
		Ended: func(name string, state *os.ProcessState) { told <- fmt.Sprint(name, " ", state) },
	})
	err := p.Start(t.Context(), "a")
	if err == nil || !strings.Contains(err.Error(), "node a: it ended at once (exit status 3): no good") {
		t.Errorf("got %v", err)
	}
	if got := <-told; got != "a exit status 3" {
		t.Errorf("told %q", got)
	}
}

// TestSignals: what happens to the process of a node, and who is told.
func TestSignals(t *testing.T) {
	const polite = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"
	p := processes(t, Options{
		Program: stub(t, polite), BasePort: 2525,
		Ended: func(name string, state *os.ProcessState) { t.Errorf("told of the end of %s: %v", name, state) },
	})
	start := func(name string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		// The stub never becomes ready; it goes on all the same.
		if err := p.Start(ctx, name); err == nil || !strings.Contains(err.Error(), "not ready") {
			t.Fatalf("started a stub: %v", err)
		}
	}
	start("a")
	start("b")
	if err := p.Start(t.Context(), "a"); err == nil {
		t.Error("started twice")
	}
	if got := strings.Join(p.Running(), " "); got != "a b" {
		t.Errorf("running: %s", got)
	}
	if err := p.Pause("a"); err != nil {
		t.Error(err)
	}
	if err := p.Stop("a"); err != nil {
		t.Errorf("stopping a frozen node: %v", err)
	}
	if b, err := os.ReadFile(p.LogFile("a")); err != nil || string(b) != "up\nbye\n" {
		t.Errorf("log %q, %v", b, err)
	}
	if err := p.Kill("b"); err != nil {
		t.Error(err)
	}
	for _, f := range []func(string) error{p.Stop, p.Kill, p.Pause, p.Resume} {
		if err := f("b"); err == nil || !strings.Contains(err.Error(), "does not run") {
			t.Errorf("done to a dead node: %v", err)
		}
	}
	if err := p.Wipe("b"); err != nil {
		t.Error(err)
	}
}

// TestHosts: on hosts of their own, nodes have the ports of real ones, SMTP on
// the clients' network and the rest on their own.
func TestHosts(t *testing.T) {
	if err := netns.Available(); err != nil {
		t.Skip(err)
	}
	lab, err := NewLab(2)
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	p := processes(t, Options{Program: "chainmail", Dir: "/tmp", Lab: lab})
	for _, tt := range []struct{ name, service, want string }{
		{"a", "smtp", "192.0.2.1:25"},
		{"b", "http", "198.51.100.2:8025"},
		{Balancer, "smtp", "192.0.2.100:25"},
		{Balancer, "http", "192.0.2.100:8025"},
	} {
		if got := p.Addr(tt.name, tt.service); got != tt.want {
			t.Errorf("%s of %s: %s, want %s", tt.service, tt.name, got, tt.want)
		}
	}
	space, err := lab.Space("b")
	if err != nil {
		t.Fatal(err)
	}
	const args = " chainmail node --name b --data-dir /tmp/b --smtp 192.0.2.2:25 --chain 198.51.100.2:8091 --gossip 198.51.100.2:8092 --raft 198.51.100.2:8093 --http :8025 --advertise-http 198.51.100.2:8025"
	if got, want := p.StartCommand("b"), "ip netns exec "+space+args; got != want {
		t.Errorf("b is started by\n%s\nwant\n%s", got, want)
	}
}

// TestBalancerConfig: it is told where it is, whom to ask, and from where to
// connect.
func TestBalancerConfig(t *testing.T) {
	p := processes(t, Options{Program: "chainmail", Dir: "/tmp", BasePort: 2525})
	if got, want := p.StartCommand(Balancer), "chainmail lb run --config /tmp/lb/lb.yaml"; got != want {
		t.Errorf("the balancer is started by %s, want %s", got, want)
	}
	const want = `# Written at each start.
dir: "/tmp/lb"
token-file: "/tmp/lb/token"
peer:
  - "127.0.0.1:2529"
  - "127.0.0.1:2539"
smtp: "127.0.0.1:2425"
http: "127.0.0.1:2429"
source-address: "127.0.0.2"
stop-timeout: 10s
`
	if got := p.balancerConfig([]string{"a", "b"}); got != want {
		t.Errorf("its settings are\n%s\nwant\n%s", got, want)
	}
}
