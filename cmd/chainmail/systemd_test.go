package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"chainmail/node"
	"chainmail/node/api"
	"chainmail/testcluster/support"
)

// diary is a supervisor that notes what it hears, and when.
type diary struct {
	began time.Time
	mu    sync.Mutex
	lines []string
}

func newDiary(watchdog time.Duration) (*diary, *supervisor) {
	d := &diary{began: time.Now()}
	return d, &supervisor{watchdog: watchdog, send: func(state string) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.lines = append(d.lines, fmt.Sprintf("%v %s", time.Since(d.began), state))
	}}
}

// heard returns what came since the last time.
func (d *diary) heard() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	lines := d.lines
	d.lines = nil
	return lines
}

func (d *diary) expect(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	if got := d.heard(); !slices.Equal(got, want) {
		t.Errorf("heard\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// TestSupervisorFollowsALife: from the opening to the end, a program that hangs
// for a while gives no sign of life meanwhile.
func TestSupervisorFollowsALife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, s := newDiary(30 * time.Second)
		ctx, stop := context.WithCancel(t.Context())
		ready := make(chan struct{})
		var status atomic.Value
		var hangs atomic.Bool
		status.Store("well")
		ended := s.follow(ctx, life{
			opening: "opening", ready: ready, closing: "closing", drain: 15 * time.Second,
			look: func(ctx context.Context) (string, error) {
				if hangs.Load() {
					<-ctx.Done()
					return "", errors.New("no answer")
				}
				return status.Load().(string), nil
			},
		})
		time.Sleep(12 * time.Second)
		d.expect(t, "0s STATUS=opening", "0s EXTEND_TIMEOUT_USEC=30000000", "0s WATCHDOG=1", "10s EXTEND_TIMEOUT_USEC=30000000", "10s WATCHDOG=1")
		close(ready)
		d.expect(t, "12s READY=1\nSTATUS=well", "12s WATCHDOG=1")
		time.Sleep(10 * time.Second)
		d.expect(t, "22s WATCHDOG=1") // the status has not changed
		status.Store("ill\nor worse")
		time.Sleep(10 * time.Second)
		d.expect(t, "32s WATCHDOG=1", "32s STATUS=ill\ufffdor worse")
		hangs.Store(true)
		time.Sleep(40 * time.Second) // a look takes ten seconds at most
		d.expect(t, "52s STATUS=does not answer: no answer")
		hangs.Store(false)
		time.Sleep(10 * time.Second)
		d.expect(t, "1m22s WATCHDOG=1", "1m22s STATUS=ill\ufffdor worse")
		stop()
		d.expect(t, "1m22s STOPPING=1\nSTATUS=closing", "1m22s EXTEND_TIMEOUT_USEC=30000000", "1m22s WATCHDOG=1")
		time.Sleep(time.Minute) // it hangs, and is not waited for much longer than was said
		d.expect(t, "1m32s EXTEND_TIMEOUT_USEC=30000000", "1m32s WATCHDOG=1")
		ended(errors.New("the disk is gone\nand more"))
		d.expect(t, "2m22s STATUS=failed: the disk is gone")
	})
}

// TestSupervisorOfShortLives: one that ends before it is ready, or by itself.
func TestSupervisorOfShortLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, s := newDiary(0)
		well := func(context.Context) (string, error) { return "well", nil }
		ended := s.follow(t.Context(), life{opening: "opening", ready: make(chan struct{}), look: well, closing: "closing", drain: time.Minute})
		synctest.Wait()
		ended(errors.New("no port"))
		d.expect(t, "0s STATUS=opening", "0s EXTEND_TIMEOUT_USEC=30000000", "0s STATUS=failed: no port")

		ready := make(chan struct{})
		close(ready)
		d, s = newDiary(0)
		ended = s.follow(t.Context(), life{opening: "opening", ready: ready, look: well, closing: "closing", drain: time.Minute})
		synctest.Wait()
		d.heard()
		ended(nil)
		d.expect(t)

		// One that opens for ever is given up.
		d, s = newDiary(0)
		ended = s.follow(t.Context(), life{opening: "opening", ready: make(chan struct{}), look: well, closing: "closing", drain: time.Minute})
		time.Sleep(time.Hour)
		if n, most := len(d.heard())-1, int(openingLimit/lookEvery)+1; n < most-1 || n > most {
			t.Errorf("it asked for more time %d times, want %d", n, most)
		}
		ended(nil)

		(&supervisor{}).follow(t.Context(), life{})(errors.New("nobody listens"))
	})
}

func TestSummary(t *testing.T) {
	for _, c := range []struct {
		want   string
		role   node.Role
		status api.Status
	}{
		{"active; 1,234 mails, 5.0 GiB free", node.RoleData, api.Status{State: "active", Messages: 1234, Disk: api.Disk{Free: 5 << 30}}},
		{"full: no space; 1 mail, 0 B free; 2 receipts DAMAGED", node.RoleData, api.Status{State: "full", Reason: "no space", Messages: 1, Scrub: api.Scrub{Bad: 2}}},
		{"active; votes, keeps no mail", node.RoleWitness, api.Status{State: "active"}},
	} {
		if got := summary(c.role, c.status); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// TestProcessNotifies: the real program under what looks like systemd to it.
func TestProcessNotifies(t *testing.T) {
	dir := newDataDir(t)
	socket := filepath.Join(support.ShortDir(t), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	until := func(want string) (heard []string) {
		t.Helper()
		l.SetReadDeadline(time.Now().Add(time.Minute))
		buffer := make([]byte, 4096)
		for {
			n, err := l.Read(buffer)
			if err != nil {
				t.Fatalf("heard %q, and not %s: %v", heard, want, err)
			}
			heard = append(heard, string(buffer[:n]))
			if strings.HasPrefix(heard[len(heard)-1], want) {
				return heard
			}
		}
	}
	p := support.Launch(t, dir, "127.0.0.1:0", "NOTIFY_SOCKET="+socket, "WATCHDOG_USEC=300000")
	if heard := until("READY=1\nSTATUS=active; 0 mails"); heard[0] != "STATUS=opening "+dir {
		t.Errorf("at first it says %q", heard)
	}
	if code, _, stderr := runCommand(t, "status", "--data-dir", dir); code != exitOK {
		t.Errorf("it is ready, and: %s", stderr)
	}
	until("WATCHDOG=1")

	door := node.SocketPath(dir)
	if err := os.Rename(door, door+".away"); err != nil {
		t.Fatal(err)
	}
	until("STATUS=does not answer")
	l.SetReadDeadline(time.Now().Add(time.Second)) // three watchdogs long
	if n, err := l.Read(make([]byte, 100)); err == nil {
		t.Errorf("with its door shut it says %d bytes more", n)
	}
	if err := os.Rename(door+".away", door); err != nil {
		t.Fatal(err)
	}
	until("WATCHDOG=1")

	if err := p.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	until("STOPPING=1")
	<-p.Ended
	if code := p.Cmd.ProcessState.ExitCode(); code != exitOK {
		t.Errorf("exit code %d\n%s", code, p.Log.String())
	}
	if strings.Contains(p.Log.String(), "Ctrl-C") {
		t.Error("it speaks to a person")
	}
}

// TestAbortIsNoUsageError: 2 would tell a supervisor not to start it again.
func TestAbortIsNoUsageError(t *testing.T) {
	p := startNode(t, newDataDir(t))
	p.signal(t, syscall.SIGABRT) // what a watchdog sends; a panic ends the same way
	status := p.wait(t).Sys().(syscall.WaitStatus)
	if !status.Signaled() || status.Signal() != syscall.SIGABRT {
		t.Errorf("it ended with %d", status.ExitStatus())
	}
	if !strings.Contains(p.Log.String(), "goroutine ") {
		t.Error("it does not say what it did")
	}
}

func TestJournalPriorities(t *testing.T) {
	var out bytes.Buffer
	handler := newJournalHandler(&out, func(w io.Writer) slog.Handler {
		return slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}})
	})
	log := slog.New(handler).With("node", "a").WithGroup("g").With("k", 1)
	log.Debug("one")
	log.Info("two")
	log.Warn("three")
	log.Error("four", "err", "two\nlines")
	want := `<7>level=DEBUG msg=one node=a g.k=1
<6>level=INFO msg=two node=a g.k=1
<4>level=WARN msg=three node=a g.k=1
<3>level=ERROR msg=four node=a g.k=1 g.err="two\nlines"
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}
