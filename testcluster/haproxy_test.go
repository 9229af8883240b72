package testcluster_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"chainmail/testcluster/local"
	"chainmail/testcluster/support"
)

// balancerAddress is where the balancer's own connections come from: what comes
// to the nodes from 127.0.0.1 is not the balancer's.
const balancerAddress = "127.0.0.2"

// haproxy is an HAProxy that runs.
type haproxy struct {
	program string
	config  string // as chainmail makes it
	adapted string // as it runs here
	log     string
	cmd     *exec.Cmd
	ended   chan struct{}
}

// adaption makes Debian's HAProxy one that meets no other on the machine: a script
// for sed.
func (h *haproxy) adaption() string {
	script := fmt.Sprintf("s|/run/haproxy/|%s/|\ns|^\tlog \"/dev/log\"|\tlog stdout format raw|\n", filepath.Dir(h.config))
	if os.Geteuid() != 0 {
		script += "/^\t\\(user\\|group\\) /d\n"
	}
	return script
}

// newHAProxy is an HAProxy that does not run yet.
func newHAProxy(t *testing.T, log string) *haproxy {
	t.Helper()
	dir := support.ShortDir(t)
	h := &haproxy{
		program: lookFor(t, "haproxy", "haproxy"), log: log, ended: make(chan struct{}),
		config: filepath.Join(dir, "haproxy.cfg"), adapted: filepath.Join(dir, "adapted.cfg"),
	}
	writeFile(t, filepath.Join(dir, "adapt"), h.adaption())
	return h
}

// adapt is a shell command for what stands between the file and HAProxy.
func (h *haproxy) adapt() string {
	return fmt.Sprintf("sed -f %s/adapt %s > %s", filepath.Dir(h.config), h.config, h.adapted)
}

// start runs it as Debian's service does, until the end of the test.
func (h *haproxy) start(t *testing.T) {
	t.Helper()
	sends(t, nil, "sh", "-c", h.adapt())
	log, err := os.OpenFile(h.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	h.cmd = exec.Command(h.program, "-W", "-f", h.adapted)
	h.cmd.Stdout, h.cmd.Stderr = log, log
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // its workers too, in which the end of the master may come late
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = h.cmd.Wait() // ProcessState tells
		close(h.ended)
	}()
	t.Cleanup(func() {
		_ = h.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-h.ended:
		case <-time.After(10 * time.Second):
			t.Error("HAProxy does not end")
		}
		_ = syscall.Kill(-h.cmd.Process.Pid, syscall.SIGKILL) // nobody is left, most times
	})
}

// chainmail is a command of the real program that keeps the settings of this
// machine's own balancer out.
func chainmail(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	none := filepath.Join(t.TempDir(), "lb.yaml")
	writeFile(t, none, "")
	return exec.CommandContext(t.Context(), support.Program(t), append(args, "--config", none)...)
}

// introduce makes a balancer known to all nodes, and gives it a token.
func (f *front) introduce(address string) (tokenFile string) {
	f.t.Helper()
	if _, err := f.Run(f.t.Context(), "a", "cluster", "set", "balancers="+address); err != nil {
		f.t.Fatal(err)
	}
	for _, name := range f.names {
		c := f.Client(name)
		eventually(f.t, 20*time.Second, name+" knows the balancer", func() bool {
			view, err := c.Cluster(f.t.Context())
			return err == nil && len(view.Policies.Balancers) > 0
		})
		c.Close()
	}
	secret, err := f.Run(f.t.Context(), "a", "token", "api", "--name", "lb", "--scope", "cluster")
	if err != nil {
		f.t.Fatal(err)
	}
	tokenFile = filepath.Join(f.t.TempDir(), "token")
	writeFile(f.t, tokenFile, secret)
	return tokenFile
}

// startHAProxy puts HAProxy in front, which "chainmail lb watch" keeps as the
// cluster is.
func (f *front) startHAProxy() {
	f.t.Helper()
	h := newHAProxy(f.t, f.LogFile(local.Balancer))
	flags := []string{
		"--token-file", f.introduce(balancerAddress), "--source-address", balancerAddress,
		"--smtp", f.Addr(local.Balancer, "smtp"), "--http", f.Addr(local.Balancer, "http"),
	}
	for _, name := range f.names {
		flags = append(flags, "--peer", f.Addr(name, "http"))
	}
	if out, err := chainmail(f.t, append([]string{"lb", "haproxy", "-o", h.config}, flags...)...).CombinedOutput(); err != nil || len(out) > 0 {
		f.t.Fatalf("lb haproxy: %v\n%s", err, out)
	}
	h.start(f.t)
	f.greets()
	watch := chainmail(f.t, append([]string{
		"lb", "watch", "--out", "haproxy=" + h.config,
		"--check", h.program + " -c -q -f {}", "--reload", fmt.Sprintf("%s && kill -USR2 %d", h.adapt(), h.cmd.Process.Pid),
	}, flags...)...)
	log, err := os.OpenFile(f.LogFile(local.Balancer), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	defer log.Close()
	watch.Stdout, watch.Stderr = log, log
	if err := watch.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		_ = watch.Process.Signal(syscall.SIGTERM)
		if err := watch.Wait(); err != nil && f.t.Context().Err() == nil {
			f.t.Errorf("lb watch: %v", err)
		}
	})
}

// greets waits until a node greets clients by way of the balancer.
func (f *front) greets() {
	f.t.Helper()
	eventually(f.t, 20*time.Second, "the balancer greets", func() bool {
		conn, err := net.DialTimeout("tcp", f.Addr(local.Balancer, "smtp"), time.Second)
		if err != nil {
			return false
		}
		defer conn.Close()
		b := make([]byte, 3)
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		_, err = conn.Read(b)
		return err == nil && string(b) == "220"
	})
}

func TestHAProxy(t *testing.T) {
	source := lookFor(t, "smtp-source", "postfix")
	lookFor(t, "haproxy", "haproxy")
	f := newNodes(t, 3)
	f.startHAProxy()
	f.takesMail(t, source)
}

func TestHAProxyHTTP(t *testing.T) {
	lookFor(t, "haproxy", "haproxy")
	f := newNodes(t, 3)
	f.startHAProxy()
	f.sticks(t)
}

var (
	_ = netip.Addr{}
	_ = context.Background
	_ = strings.Cut
)
