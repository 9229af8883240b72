package testcluster_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/smtp"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"chainmail/node"
	"chainmail/node/api"
	"chainmail/testcluster/load"
)

// smallDisk mounts a file system of its own, for example of "64m", and returns
// its directory.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	needRoot(t, "mounts a small file system")
	dir, err := os.MkdirTemp("", "chainmail-disk") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "size="+size, "chainmail-test", dir).CombinedOutput(); err != nil {
		t.Skipf("mount: %v: %s", err, out) // a container may forbid it to root
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

// ballast takes space until it has size bytes or no byte is left. Its steps
// shrink, so that a full disk is full to the last page.
func ballast(t *testing.T, file string, size int) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	step := make([]byte, node.MiB)
	for size > 0 {
		n, err := f.Write(step[:min(size, len(step))])
		size -= n
		switch {
		case err == nil:
		case !errors.Is(err, syscall.ENOSPC):
			t.Fatal(err)
		case len(step) == 1:
			return
		default:
			step = step[:len(step)/2]
		}
	}
}

// mailReply is what a node answers to MAIL, or why it does not.
func mailReply(addr string) string {
	c, err := smtp.Dial(addr)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	if err := c.Mail("a@example.com"); err != nil {
		return err.Error()
	}
	return "250"
}

// readiness asks /readyz of a node.
func readiness(t *testing.T, dataDir string) (code int, h api.Health) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", node.SocketPath(dataDir))
	}}}
	defer c.CloseIdleConnections()
	r, err := c.Get("http://node/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if err := json.NewDecoder(r.Body).Decode(&h); err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, h
}

// loading sends mail until the returned function is called, whatever becomes
// of the node, and notes what was acknowledged.
func loading(t *testing.T, addr, acked string) (stop func()) {
	t.Helper()
	list, err := os.OpenFile(acked, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		// It ends with an error when it is stopped and when the node ends.
		_, _ = load.Run(ctx, load.Options{Target: addr, Sessions: 8, Size: 200_000, Acked: list, Patience: 1})
	}()
	stop = func() { cancel(); <-done; list.Close() }
	t.Cleanup(stop)
	return stop
}

// TestNearlyFullDisk: below min_free new mail is refused for now, the rest goes
// on, and mail is taken again when there is space. min_free is large here, as
// the database takes some 250 MiB at once when it begins to write.
func TestNearlyFullDisk(t *testing.T) {
	disk := smallDisk(t, "1g")
	dataDir, weight, acked, addr := filepath.Join(disk, "data"), filepath.Join(disk, "ballast"), filepath.Join(t.TempDir(), "acked"), freeAddr(t)
	ballast(t, weight, 320*int(node.MiB))
	program(t, dataDir, addr, "CHAINMAIL_DISK_MIN_FREE=512MiB")

	stop := loading(t, addr, acked)
	eventually(t, time.Minute, "452 4.3.1", func() bool { return strings.HasPrefix(mailReply(addr), "452 4.3.1 disk nearly full") })
	stop()
	code, h := readiness(t, dataDir)
	if code != http.StatusServiceUnavailable || h.State != api.StateFull ||
		!strings.Contains(h.Reason, "the limit is 512 MiB: free some space") || !strings.Contains(h.Reason, dataDir) {
		t.Errorf("readyz on a full disk: %d %+v", code, h)
	}
	expectAcked(t, dataDir, acked)

	if err := os.Remove(weight); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "mail is taken again", func() bool { return mailReply(addr) == "250" })
	if code, h := readiness(t, dataDir); code != http.StatusOK {
		t.Errorf("readyz with space again: %d %+v", code, h)
	}
	list, err := os.OpenFile(acked, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer list.Close()
	r, err := load.Run(t.Context(), load.Options{Target: addr, Count: 100, Size: 20_000, Acked: list})
	if err != nil || r.Acked != 100 || r.Tempfailed > 0 {
		t.Errorf("after the disk was full: %v, %v", r, err)
	}
	expectAcked(t, dataDir, acked)
}

// TestFullDisk lets the disk fill up to the last byte, faster than the guard of
// min_free looks. The node must end rather than promise anything.
func TestFullDisk(t *testing.T) {
	disk := smallDisk(t, "256m")
	dataDir, weight, acked, addr := filepath.Join(disk, "data"), filepath.Join(disk, "ballast"), filepath.Join(t.TempDir(), "acked"), freeAddr(t)
	n := program(t, dataDir, addr)

	stop := loading(t, addr, acked)
	eventually(t, 10*time.Second, "some mail is acknowledged", func() bool {
		info, err := os.Stat(acked)
		return err == nil && info.Size() > 100*65
	})
	eventually(t, time.Minute, "the node ends", func() bool {
		ballast(t, weight, 1<<30)
		refused := false
		eventually(t, time.Minute, "the node notices", func() bool {
			reply := mailReply(addr)
			refused = strings.HasPrefix(reply, "452")
			return reply != "250"
		})
		if refused { // the guard was faster this time
			if err := os.Remove(weight); err != nil {
				t.Fatal(err)
			}
		}
		return !refused
	})
	stop()
	expectDeathOfFullDisk(t, n)

	t.Run("started again while it is full", func(t *testing.T) {
		ballast(t, weight+"2", 1<<30)
		expectDeathOfFullDisk(t, launch(t, dataDir, addr))
	})
	for _, f := range []string{weight, weight + "2"} {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	program(t, dataDir, addr)
	expectAcked(t, dataDir, acked)
}

// expectDeathOfFullDisk waits for the end of a node that found no space.
func expectDeathOfFullDisk(t *testing.T, n *process) {
	t.Helper()
	select {
	case <-n.ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the node lives on a full disk")
	}
	var complaints []string
	for line := range strings.Lines(n.log.String()) {
		if strings.Contains(line, "level=ERROR") {
			complaints = append(complaints, line)
		}
	}
	t.Logf("log of the node:\n%s", n.log.String())
	if code := n.cmd.ProcessState.ExitCode(); code != 70 || len(complaints) != 1 ||
		!strings.Contains(complaints[0], "no space left on device: check the disk and its free space, then start the node again") {
		t.Errorf("exit code %d, want 70 and one clear error in:\n%s", code, n.log.String())
	}
}
