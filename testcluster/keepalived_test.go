package testcluster_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"chainmail/node/api"
	"chainmail/node/client"
	"chainmail/testcluster"
	"chainmail/testcluster/local"
	"chainmail/testcluster/netns"
	"chainmail/testcluster/support"
)

const sharedAddress = "192.0.2.50" // of two balancers, of which one has it at a time

// pair is two hosts that balance, with an nginx that "chainmail lb run" owns and a
// keepalived on each.
type pair struct {
	t    *testing.T
	c    *testcluster.OnHosts
	dir  string
	runs map[string]*hosted // by service and host
}

// hosted is a process on a host, and all that it starts.
type hosted struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

var pairHosts = []string{"lb1", "lb2"}

func newPair(t *testing.T) *pair {
	t.Helper()
	both := []netns.Card{netns.Front, netns.Chain}
	p := &pair{t: t, dir: support.ShortDir(t), runs: map[string]*hosted{}}
	p.c = testcluster.Hosts(t, support.Program(t), testcluster.Options{Nodes: 2, Replicas: testcluster.All},
		netns.Host{Name: "lb1", Number: 10, Cards: both}, netns.Host{Name: "lb2", Number: 11, Cards: both})
	p.c.Reach[local.Balancer] = net.JoinHostPort(sharedAddress, "25")
	t.Cleanup(p.end)
	p.prepare()
	for _, host := range pairHosts {
		p.startBalancer(host)
		p.startKeepalived(host)
		p.await("lb1")
	}
	return p
}

// prepare makes both known to the cluster, and gives them what they need.
func (p *pair) prepare() {
	p.t.Helper()
	var addresses []string
	for _, host := range pairHosts {
		for _, card := range []netns.Card{netns.Front, netns.Chain} {
			addresses = append(addresses, p.c.Lab.Addr(card, host).String())
		}
	}
	p.c.Set(api.PolicyChange{Balancers: &addresses})
	token, err := p.c.Processes.Run(p.t.Context(), "a", "token", "api", "--name", "lb", "--scope", "cluster")
	if err != nil {
		p.t.Fatal(err)
	}
	writeFile(p.t, p.file("token"), token)
	writeFile(p.t, p.file("lb.yaml"), "")
	// The check is run by nobody, who may not enter the program's own folder.
	program, err := os.ReadFile(support.Program(p.t))
	if err != nil {
		p.t.Fatal(err)
	}
	for _, err := range []error{os.Chmod(p.dir, 0o755), os.WriteFile(p.file("chainmail"), program, 0o755)} {
		if err != nil {
			p.t.Fatal(err)
		}
	}
	if err := p.c.Lab.Do("lb2", func() error { // for an address that it has not yet
		return os.WriteFile("/proc/sys/net/ipv4/ip_nonlocal_bind", []byte("1"), 0)
	}); err != nil {
		p.t.Fatal(err)
	}
	for i, host := range pairHosts {
		other := pairHosts[1-i]
		sends(p.t, nil, p.file("chainmail"), "lb", "keepalived", "--config", p.file("lb.yaml"), "--interface", string(netns.Front),
			"--own", p.c.Lab.Addr(netns.Front, host).String(), "--other", p.c.Lab.Addr(netns.Front, other).String(),
			"--shared", sharedAddress+"/24", "--priority", fmt.Sprint(150-50*i),
			"--check-program", p.file("chainmail")+" lb check", "-o", p.file(host+".conf"))
	}
}

func (p *pair) file(name string) string { return filepath.Join(p.dir, name) }

// run starts a program on a host.
func (p *pair) run(service, host, program string, args ...string) {
	p.t.Helper()
	log, err := os.OpenFile(p.file(service+"-"+host+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	h := &hosted{exec.Command(program, args...), make(chan struct{})}
	h.cmd.Stdout, h.cmd.Stderr = log, log
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.c.Lab.Start(host, h.cmd); err != nil {
		p.t.Fatal(err)
	}
	go func() {
		_ = h.cmd.Wait() // it is ended by signals
		close(h.ended)
	}()
	p.runs[service+"-"+host] = h
}

func (p *pair) startBalancer(host string) {
	p.t.Helper()
	args := []string{"lb", "run", "--config", p.file("lb.yaml"), "--dir", p.file(host), "--token-file", p.file("token"), "--smtp", p.listens(host)}
	for _, name := range p.c.Running() {
		args = append(args, "--peer", p.c.Processes.Addr(name, "http"))
	}
	p.run("balancer", host, p.file("chainmail"), args...)
	p.c.Eventually(20*time.Second, "the balancer on "+host+" greets", func() error {
		return greeting(p.t.Context(), "127.0.0.1:25", func(ctx context.Context, addr string) (net.Conn, error) {
			return p.c.Processes.Dial(ctx, host, addr)
		})
	})
}

// listens is where a balancer does: one on all interfaces, the other one on the
// shared address alone, and where it is checked.
func (p *pair) listens(host string) string {
	if host == "lb1" {
		return ":25"
	}
	return sharedAddress + ":25,127.0.0.1:25"
}

func (p *pair) startKeepalived(host string) {
	p.t.Helper()
	p.run("keepalived", host, lookFor(p.t, "keepalived", "keepalived"), "--dont-fork", "--log-console", "--log-detail", "--vrrp",
		"--use-file", p.file(host+".conf"), "--pid", p.file(host+".pid"), "--vrrp_pid", p.file(host+"-vrrp.pid"))
}

// kill is kill -9 of all that a service consists of.
func (p *pair) kill(service, host string) {
	p.t.Helper()
	name := service + "-" + host
	h := p.runs[name]
	if h == nil {
		return
	}
	delete(p.runs, name)
	if err := syscall.Kill(-h.cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		p.t.Error(err)
	}
	<-h.ended
}

// stop lets a service end in order.
func (p *pair) stop(service, host string) {
	p.t.Helper()
	h := p.runs[service+"-"+host]
	if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Error(err)
	}
	select {
	case <-h.ended:
	case <-time.After(10 * time.Second):
		p.t.Errorf("%s on %s does not end", service, host)
	}
	p.kill(service, host) // nobody is left of its group, most times
}

func (p *pair) end() {
	for _, host := range pairHosts {
		p.kill("keepalived", host)
		p.kill("balancer", host)
		for _, service := range []string{"keepalived", "balancer"} {
			if log, err := os.ReadFile(p.file(service + "-" + host + ".log")); err == nil && p.t.Failed() {
				p.t.Logf("%s on %s says:\n%s", service, host, log)
			}
		}
	}
}

// has reports whether a host has the shared address.
func (p *pair) has(host string) (yes bool) {
	p.t.Helper()
	if err := p.c.Lab.Do(host, func() error {
		card, err := net.InterfaceByName(string(netns.Front))
		if err != nil {
			return err
		}
		all, err := card.Addrs()
		yes = slices.ContainsFunc(all, func(a net.Addr) bool { return strings.HasPrefix(a.String(), sharedAddress+"/") })
		return err
	}); err != nil {
		p.t.Fatal(err)
	}
	return yes
}

// await waits until a host has the shared address, and the service is there.
func (p *pair) await(host string) {
	p.t.Helper()
	p.c.Eventually(20*time.Second, host+" has the shared address", func() error {
		if !p.has(host) {
			return errors.New("it has not")
		}
		return p.greeting(p.t.Context(), sharedAddress)
	})
}

// greeting asks for one from the clients' host.
func (p *pair) greeting(ctx context.Context, ip string) error {
	return greeting(ctx, net.JoinHostPort(ip, "25"), func(ctx context.Context, addr string) (net.Conn, error) {
		return p.c.Processes.Dial(ctx, local.Client, addr)
	})
}

// pulse asks for greetings at the shared address. Nobody waits so long that their
// system offers the connection again.
func (p *pair) pulse() *pulse {
	return newPulse(p.t, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 900*time.Millisecond)
		defer cancel()
		return p.greeting(ctx, sharedAddress)
	})
}

// TestSharedAddress: two balancers share an address. Whatever becomes of the one
// that has it, the other one has it soon, and keeps it when the first comes back.
func TestSharedAddress(t *testing.T) {
	needHosts(t)
	needBalancer(t)
	lookFor(t, "keepalived", "keepalived")
	p := newPair(t)
	flow := begin(t, p.c)
	for _, tt := range []struct {
		name     string
		from, to string // who has the address before and after
		harm     func(host string)
		mend     func(host string)
		most     time.Duration // without the service, on a machine that does much else
		claim    time.Duration // how long the first could take to claim the address again
	}{
		{"the host dies", "lb1", "lb2", p.crash, p.boot, 8 * time.Second, 5 * time.Second},
		{"the balancer dies", "lb2", "lb1", func(host string) { p.kill("balancer", host) }, p.startBalancer, 8 * time.Second, 0},
		{"the cable is pulled", "lb1", "lb2", p.pull, p.plug, 8 * time.Second, 5 * time.Second},
		{"keepalived is killed", "lb2", "lb1", func(host string) { p.kill("keepalived", host) }, p.startKeepalived, 3 * time.Second, 0},
		{"keepalived is stopped", "lb1", "lb2", func(host string) { p.stop("keepalived", host) }, p.startKeepalived, 3 * time.Second, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pulse := p.pulse()
			time.Sleep(time.Second)
			flow.longest.Store(0)
			tt.harm(tt.from)
			p.await(tt.to)
			away, gap := pulse.end().away, time.Duration(flow.longest.Load())
			pulse = p.pulse()
			tt.mend(tt.from)
			time.Sleep(tt.claim)
			p.c.Eventually(5*time.Second, tt.to+" alone has the address", func() error {
				if p.has(tt.from) || !p.has(tt.to) {
					return fmt.Errorf("%s has it: %t, %s has it: %t", tt.from, p.has(tt.from), tt.to, p.has(tt.to))
				}
				return nil
			})
			after := pulse.end().away
			t.Logf("the service was away for %v, no mail was accepted for %v; it was away for %v when all was mended",
				away.Round(10*time.Millisecond), gap.Round(10*time.Millisecond), after.Round(10*time.Millisecond))
			if away > tt.most {
				t.Errorf("the service was away for %v, more than %v", away, tt.most)
			}
			if after > 2*time.Second {
				t.Errorf("the service was away for %v when %s was mended", after, tt.from)
			}
		})
	}
	_, wait, failures := flow.end()
	t.Logf("%d mails were accepted, %d failed over new connections, of which the slowest took %v", p.c.Acknowledged(), len(failures), wait.Round(10*time.Millisecond))
	p.c.Check()
	t.Run("receipts name the client", func(t *testing.T) {
		want := p.c.Lab.Addr(netns.Front, local.Client).String() + ":"
		for m, err := range p.c.Client("a").Messages(t.Context(), client.Query{}) {
			if err != nil {
				t.Fatal(err)
			}
			if got := m.Receipts[0].Client; !strings.HasPrefix(got, want) {
				t.Fatalf("a receipt names %s, want %s and a port", got, want)
			}
		}
	})
}

// crash ends a host without a word.
func (p *pair) crash(host string) {
	for _, card := range []netns.Card{netns.Front, netns.Chain} {
		if err := p.c.Lab.Isolate(card, host); err != nil {
			p.t.Fatal(err)
		}
	}
	p.kill("keepalived", host)
	p.kill("balancer", host)
}

// boot lets it begin anew: without the address, which no configuration gives it.
func (p *pair) boot(host string) {
	p.giveUp(host)
	p.c.Heal()
	p.startBalancer(host)
	p.startKeepalived(host)
}

// giveUp takes the address from a host that nobody did it for.
func (p *pair) giveUp(host string) {
	space, err := p.c.Lab.Space(host)
	if err != nil {
		p.t.Fatal(err)
	}
	sends(p.t, nil, lookFor(p.t, "ip", "iproute2"), "-n", space, "address", "delete", sharedAddress+"/24", "dev", string(netns.Front))
}

func (p *pair) pull(host string) {
	if err := p.c.Lab.Unplug(netns.Front, host); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pair) plug(host string) {
	if err := p.c.Lab.Plug(netns.Front, host); err != nil {
		p.t.Fatal(err)
	}
}
