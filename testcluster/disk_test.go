package testcluster_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/smtp"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"chainmail/node"
	"chainmail/node/api"
	"chainmail/testcluster/load"
	"chainmail/testcluster/support"
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
	err = c.Mail("a@example.com")
	if reply, ok := errors.AsType[*textproto.Error](err); ok {
		return fmt.Sprint(reply.Code, " ", reply.Msg)
	}
	if err != nil {
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
	dataDir, weight, acked, addr := filepath.Join(disk, "data"), filepath.Join(disk, "ballast"), filepath.Join(t.TempDir(), "acked"), support.FreeAddr(t)
	ballast(t, weight, 320*int(node.MiB))
	support.StartProgram(t, dataDir, addr, "CHAINMAIL_DISK_MIN_FREE=512MiB")

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
	disk := smallDisk(t, "1g")
	dataDir, weight, acked, addr := filepath.Join(disk, "data"), filepath.Join(disk, "ballast"), filepath.Join(t.TempDir(), "acked"), support.FreeAddr(t)
	reserve := weight + ".reserve" // what the database needs to begin again
	ballast(t, reserve, 640*int(node.MiB))
	n := support.StartProgram(t, dataDir, addr)

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
	expectEnd(t, n, 70, "no space left on device: check the disk and its free space before the node is started again")

	ballast(t, weight+".rest", 1<<30)
	before := files(t, node.ArchiveDir(dataDir))
	for range 3 { // as a supervisor would
		expectEnd(t, support.Launch(t, dataDir, addr), 1, "free some space, then start the node again; nothing was changed")
	}
	if after := files(t, node.ArchiveDir(dataDir)); !slices.Equal(before, after) {
		t.Errorf("starts on a full disk changed the files:\n%v\n%v", before, after)
	}
	for _, f := range []string{reserve, weight, weight + ".rest"} {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	support.StartProgram(t, dataDir, addr)
	expectAcked(t, dataDir, acked)
}

// expectEnd waits for the end of a node that found no space. It says why once.
func expectEnd(t *testing.T, n *support.Process, code int, why string) {
	t.Helper()
	select {
	case <-n.Ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the node lives on a full disk")
	}
	if got := n.Cmd.ProcessState.ExitCode(); got != code || strings.Count(n.Log.String(), why) != 1 {
		t.Errorf("exit code %d, want %d and once %q in:\n%s", got, code, why, n.Log.String())
	}
}

// files lists a directory with the sizes of its files.
func files(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprint(e.Name(), " ", info.Size()))
	}
	return all
}
