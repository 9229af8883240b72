package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"chainmail/node/client"
	"chainmail/testcluster/support"
)

const nobody = 65534 // a user without any rights; every system has it

// othersDir is a data directory of nobody's, which that user can reach.
func othersDir(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT RUN: only root can act as somebody else")
	}
	top, err := os.MkdirTemp("", "owner")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	dir := filepath.Join(top, "d")
	if err := errors.Join(os.Chmod(top, 0o755), os.Mkdir(dir, 0o700), os.Chown(dir, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// allOf fails unless everything in a directory is nobody's.
func allOf(t *testing.T, dir string) (files int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Sys().(*syscall.Stat_t).Uid != nobody {
			t.Errorf("%s is not the owner's", path)
		}
		files++
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestAsOwner: what is done is done with the rights of the owner, on every
// thread, and nothing of that stays.
func TestAsOwner(t *testing.T) {
	dir := othersDir(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("root's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(dir, "trap")); err != nil {
		t.Fatal(err)
	}
	if err := os.Lchown(filepath.Join(dir, "trap"), nobody, nobody); err != nil {
		t.Fatal(err)
	}
	groups, _ := os.Getgroups()
	var notes bytes.Buffer
	failure := errors.New("a failure")
	err := asOwner(&notes, dir, func() error {
		done := make(chan error)
		for range 8 { // some on threads of their own
			go func() {
				f, err := os.CreateTemp(dir, "file")
				f.Close()
				done <- err
			}()
		}
		for range 8 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "trap"), nil, 0o644); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("through the owner's link: %v", err)
		}
		return failure
	})
	if !errors.Is(err, failure) || allOf(t, dir) != 10 {
		t.Errorf("err = %v", err)
	}
	if !regexp.MustCompile(`^` + dir + ` belongs to \w+: working in it as that user\.\n$`).MatchString(notes.String()) {
		t.Errorf("said %q", notes.String())
	}
	after, _ := os.Getgroups()
	if os.Geteuid() != 0 || os.Getegid() != 0 || fmt.Sprint(after) != fmt.Sprint(groups) {
		t.Errorf("afterwards %d:%d %v, and before in %v", os.Geteuid(), os.Getegid(), after, groups)
	}
	if text, err := os.ReadFile(secret); err != nil || string(text) != "root's" {
		t.Errorf("%q, %v", text, err)
	}

	for _, dir := range []string{t.TempDir(), filepath.Join(dir, "missing")} {
		notes.Reset()
		if err := asOwner(&notes, dir, func() error { return nil }); err != nil || notes.Len() > 0 {
			t.Errorf("%s: %v, %s", dir, err, notes.String())
		}
	}
}

// TestJoinLeavesTheOwnersFiles: also the configuration in the data directory.
func TestJoinLeavesTheOwnersFiles(t *testing.T) {
	dir := othersDir(t)
	j := recordJoins(t)
	code, _, stderr := runCommand(t, "join-node", "--name", "b", "--peer", "a:8025", "--token", "t", "--data-dir", dir)
	if code != exitOK || len(j.joined) != 1 || strings.Count(stderr, "working in it as that user") != 1 {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if !exists(filepath.Join(dir, ownConfig)) || allOf(t, dir) != 2 {
		t.Error("the files are not as they should be")
	}
}

// TestOwnerEnvironment: what root's shell holds is not for a service's user.
func TestOwnerEnvironment(t *testing.T) {
	roots := []string{
		"PATH=/bin", "PATHEXT=x", "LANG=C", "LC_ALL=C", "TZ=UTC", "HOME=/root", "USER=root", "SSH_AUTH_SOCK=/tmp/agent", "AWS_SECRET_ACCESS_KEY=s",
		"CHAINMAIL_LB_SMTP=:25", "CHAINMAILER=x", "NOTIFY_SOCKET=/run/n", "WATCHDOG_USEC=1", "JOURNAL_STREAM=1:2", "LD_PRELOAD=/x.so",
	}
	want := []string{"PATH=/bin", "LANG=C", "LC_ALL=C", "TZ=UTC", "CHAINMAIL_LB_SMTP=:25", "NOTIFY_SOCKET=/run/n", "WATCHDOG_USEC=1", "JOURNAL_STREAM=1:2"}
	if got := (owner{home: "/home/o"}).environment(roots); !slices.Equal(got, append(want, "HOME=/home/o")) {
		t.Errorf("%q", got)
	}
	if got := (owner{}).environment(roots); !slices.Equal(got, want) {
		t.Errorf("without a home %q", got)
	}
}

// TestNodeBecomesTheOwner: the real program, on a port that only root may take.
func TestNodeBecomesTheOwner(t *testing.T) {
	dir := othersDir(t)
	program := filepath.Join(filepath.Dir(dir), "chainmail")
	copyFile(t, support.Program(t), program)
	var said bytes.Buffer
	cmd := exec.Command(program, "node", "--name", "a", "--data-dir", dir, "--smtp", lowAddress(t),
		"--chain", "127.0.0.1:0", "--gossip", "127.0.0.1:0", "--raft", "127.0.0.1:0", "--http", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), "CHAINMAIL_DISK_MIN_FREE=1MiB")
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := client.New(filepath.Join(dir, "admin.sock"))
	defer c.Close()
	for deadline := time.Now().Add(time.Minute); ; {
		status, err := c.Status(t.Context())
		if err == nil && status.State == "active" {
			break
		}
		if time.Now().After(deadline) {
			cmd.Process.Kill()
			t.Fatalf("not ready: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	is, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534", "CapEff:\t0000000000000400", "CapPrm:\t0000000000000400"} {
		if !strings.Contains(string(is), want) {
			t.Errorf("%q is not in\n%s", want, is)
		}
	}
	if allOf(t, dir) < 3 {
		t.Error("where are its files?")
	}
	if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
		t.Errorf("%v\n%s", err, said.String())
	}
	if !strings.Contains(said.String(), ": running as that user.\n") {
		t.Errorf("said %s", said.String())
	}

	if code := run(t.Context(), []string{"verify", "--data-dir", dir}, streams{strings.NewReader(""), io.Discard, io.Discard}); code != exitOK {
		t.Errorf("verify: exit code %d", code)
	}
	// verify reads as the owner to its end; this process is a test's.
	if err := errors.Join(syscall.Setresuid(-1, 0, -1), syscall.Setresgid(-1, 0, -1)); err != nil {
		t.Fatal(err)
	}
	allOf(t, dir)

	// A program that the owner cannot run is an error that says so.
	if err := os.Chmod(program, 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(program, "node", "--data-dir", dir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "put the program where that user can run it") {
		t.Errorf("%v: %s", err, out)
	}
}

// lowAddress is a free port below 1024.
func lowAddress(t *testing.T) string {
	t.Helper()
	for port := 1023; port > 700; port-- {
		address := fmt.Sprintf("127.0.0.1:%d", port)
		if l, err := net.Listen("tcp", address); err == nil {
			l.Close()
			return address
		}
	}
	t.Fatal("no port below 1024 is free")
	return ""
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, text, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}
