package lb_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"chainmail/lb"
	"chainmail/node/api"
)

// mailServer greets with its name, after the PROXY header.
func mailServer(t *testing.T, name string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				r := bufio.NewReader(conn)
				header, _ := r.ReadString('\n')
				fmt.Fprintf(conn, "220 %s %s\r\n", name, strings.TrimSpace(header))
				_, _ = r.ReadString('\n') // until the client goes on
				fmt.Fprintf(conn, "221 %s\r\n", name)
			}()
		}
	}()
	return l.Addr().String()
}

func freeAddr(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

// owned is an nginx that follows a world.
type owned struct {
	*world
	own   *lb.Own
	w     *lb.Watcher
	front string
	dir   string
	log   *syncBuffer
	ended chan error
	stop  context.CancelFunc
}

func runOwned(t *testing.T, world *world, dir string, front netip.AddrPort, change ...func(*lb.Layout, *lb.Own)) *owned {
	t.Helper()
	nginx := program(t, "nginx", "nginx")
	is, err := lb.DetectNginx(t.Context(), nginx)
	if err != nil {
		missing(t, "libnginx-mod-stream")
	}
	o := &owned{world: world, front: front.String(), dir: dir, log: &syncBuffer{}, ended: make(chan error, 1)}
	logger := slog.New(slog.NewTextHandler(o.log, nil))
	ready := make(chan struct{})
	if o.own, err = lb.NewOwn(lb.OwnOptions{Dir: dir, Program: nginx, Logger: logger, Stop: 5 * time.Second, Ready: func() { close(ready) }}); err != nil {
		t.Fatal(err)
	}
	l := lb.Layout{SMTP: []netip.AddrPort{front}, HTTPMode: lb.Passthrough}
	for _, f := range change {
		f(&l, o.own)
	}
	is = o.own.Configure(is)
	o.w, err = lb.New(lb.Options{
		Layout: l, Peers: []string{aHTTP}, Dial: world.dial, Install: o.own, State: o.own.StateFile(), Logger: logger,
		Down: 300 * time.Millisecond, Up: 100 * time.Millisecond, Poll: 50 * time.Millisecond, ReloadEvery: 100 * time.Millisecond,
		Render: func(c lb.Cluster) ([]lb.File, error) {
			text, err := lb.RenderNginx(c, l, is, lb.Complete)
			return []lb.File{{Path: o.own.ConfigFile(), Text: text}}, err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, o.stop = context.WithCancel(context.WithoutCancel(t.Context()))
	go func() { o.ended <- lb.RunOwn(ctx, o.w, o.own) }()
	t.Cleanup(func() {
		o.stop()
		select {
		case <-o.ended:
		case <-time.After(20 * time.Second):
			t.Error("it does not end")
		}
		if t.Failed() {
			t.Log(o.log.String())
		}
	})
	select {
	case <-ready:
	case err := <-o.ended:
		o.ended <- err
	case <-time.After(20 * time.Second):
		t.Fatal("nginx is not ready")
	}
	return o
}

// greeting is what a client of the balancer is told first.
func (o *owned) greeting(t *testing.T) string {
	t.Helper()
	conn, err := net.Dial("tcp", o.front)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return line
}

// until asks again and again.
func (o *owned) until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s\n%s", what, o.log)
		}
	}
}

func (o *owned) pid(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(o.dir, "nginx.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func ownWorld(t *testing.T) *world {
	w := newWorld(members(2))
	for i, name := range []string{"b", "a"} {
		w.answer.Members[i].Addresses["smtp"] = mailServer(t, name)
	}
	return w
}

func TestOwnNginxFollowsTheCluster(t *testing.T) {
	o := runOwned(t, ownWorld(t), t.TempDir(), freeAddr(t))
	seen := map[string]bool{}
	for range 4 {
		g := o.greeting(t)
		if !strings.HasPrefix(g, "220 ") || !strings.Contains(g, " PROXY TCP4 127.0.0.1 ") {
			t.Fatal(g)
		}
		seen[g[4:5]] = true
	}
	if !seen["a"] || !seen["b"] {
		t.Errorf("only %v got connections", seen)
	}
	// A session that is open stays with its node through a drain and its reload.
	open, err := net.Dial("tcp", o.front)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	r := bufio.NewReader(open)
	first, _ := r.ReadString('\n')
	drained, stays := first[4:5], "b"
	if drained == "b" {
		stays = "a"
	}
	o.change(func() { o.nodes[drained] = api.StateDraining })
	o.until(t, "the old workers take no connections any more", func() bool {
		for range 8 {
			if !strings.HasPrefix(o.greeting(t), "220 "+stays) {
				return false
			}
		}
		return o.w.Status().Reloads == 2
	})
	fmt.Fprint(open, "QUIT\r\n")
	if last, err := r.ReadString('\n'); last != "221 "+drained+"\r\n" {
		t.Errorf("the open session: %q %v", last, err)
	}
	pid := o.pid(t)
	o.stop()
	if err := <-o.ended; err != nil {
		t.Error(err)
	}
	o.ended <- nil
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("nginx still runs: %v", err)
	}
}

func TestOwnNginxThatDiesEndsIt(t *testing.T) {
	o := runOwned(t, ownWorld(t), t.TempDir(), freeAddr(t))
	if err := syscall.Kill(o.pid(t), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-o.ended:
		o.ended <- nil
		if err == nil || !strings.Contains(err.Error(), "nginx ended: signal: killed") {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it goes on without nginx")
	}
}

// TestOwnNginxStartsWithoutTheCluster: with what an earlier run left.
func TestOwnNginxStartsWithoutTheCluster(t *testing.T) {
	dir, front, w := t.TempDir(), freeAddr(t), ownWorld(t)
	o := runOwned(t, w, dir, front)
	o.until(t, "it is in force", func() bool { return o.w.Status().Current })
	o.stop()
	if err := <-o.ended; err != nil {
		t.Fatal(err)
	}
	o.ended <- nil
	w.change(func() { w.nodes = map[string]string{"a": "dead", "b": "dead", "w": "dead"} })
	again := runOwned(t, w, dir, front)
	if g := again.greeting(t); !strings.HasPrefix(g, "220 ") {
		t.Error(g)
	}
	if s := again.w.Status(); s.Reloads != 0 {
		t.Errorf("%+v", s)
	}
}

func TestOwnNginxSaysThatItsPortIsTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	o := runOwned(t, ownWorld(t), t.TempDir(), netip.MustParseAddrPort(l.Addr().String()))
	err = <-o.ended
	o.ended <- nil
	port := fmt.Sprint(netip.MustParseAddrPort(l.Addr().String()).Port())
	if err == nil || !strings.Contains(err.Error(), "bind() to "+l.Addr().String()) || !strings.Contains(err.Error(), "ss -ltnp 'sport = :"+port+"'") {
		t.Error(err)
	}
}

func TestOwnFolderHasOneOwner(t *testing.T) {
	dir := t.TempDir()
	o := runOwned(t, ownWorld(t), dir, freeAddr(t))
	o.until(t, "it is in force", func() bool { return o.w.Status().Current })
	second, err := lb.NewOwn(lb.OwnOptions{Dir: dir, Program: "/bin/false", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := lb.RunOwn(t.Context(), o.w, second); err == nil || !strings.Contains(err.Error(), "another 'chainmail lb run' uses "+dir) {
		t.Error(err)
	}
}

// TestOwnFolderLetsWorkersPass: a folder of its own making is no reason to have
// nginx's workers run as root, whatever the umask; somebody's private one is.
func TestOwnFolderLetsWorkersPass(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root has workers of another user")
	}
	open, err := os.MkdirTemp("/var/tmp", "lb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(open) })
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	user := func(dir string) (string, string) {
		log := &syncBuffer{}
		own, err := lb.NewOwn(lb.OwnOptions{Dir: dir, Program: "/bin/false", Logger: slog.New(slog.NewTextHandler(log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		return own.Configure(lb.DebianNginx()).User, log.String()
	}
	if is, log := user(filepath.Join(open, "var", "lb")); is == "root" || log != "" {
		t.Errorf("workers are %s's\n%s", is, log)
	}
	for _, dir := range []string{"var", "var/lb", "var/lb/temp", "var/lb/logs"} {
		if info, err := os.Stat(filepath.Join(open, dir)); err != nil || info.Mode().Perm() != 0o711 {
			t.Errorf("%s: %v %v", dir, info.Mode(), err)
		}
	}
	private := filepath.Join(open, "private")
	if err := os.Mkdir(private, 0o700); err != nil {
		t.Fatal(err)
	}
	if is, log := user(filepath.Join(private, "lb")); is != "root" || !strings.Contains(log, "chmod o+x "+private) {
		t.Errorf("workers are %s's\n%s", is, log)
	}
	if info, _ := os.Stat(private); info.Mode().Perm() != 0o700 {
		t.Errorf("somebody's folder is %v now", info.Mode())
	}
}
