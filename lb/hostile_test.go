package lb_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"chainmail/lb"
	"chainmail/node/api"
)

// TestWatchForgetsALie: a member in other hands tells of an epoch that never was,
// and is taken out. The others are believed again, without a restart.
func TestWatchForgetsALie(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, newWorld(members(3)), dir, aHTTP)
		defer b.stop()
		b.expect(t, 0, "mail abc, web abc")
		lie := members(3)
		lie.Epoch = 1 << 60
		b.world.change(func() { b.views["a"] = lie })
		time.Sleep(5 * time.Second)
		b.world.change(func() { b.nodes["a"] = "dead" })
		b.expect(t, 2*time.Minute, "mail bc, web bc")
		if s := b.w.Status(); s.Problem != "" || s.Follows == aHTTP || s.Epoch == lie.Epoch {
			t.Errorf("%+v", s)
		}
	})
}

// TestReadIsBounded: who says that it has thousands of members would have this
// machine ask all of them, each second.
func TestReadIsBounded(t *testing.T) {
	answer := members(3)
	for i := range 20_000 {
		answer.Members = append(answer.Members, api.Member{Name: fmt.Sprint("n", i), Role: "data", Addresses: map[string]string{"smtp": "192.0.2.9:25", "http": "192.0.2.9:8025"}})
	}
	if c, _, err := lb.Read(answer, standard()); err == nil {
		t.Errorf("%d nodes would be asked each second", len(c.Nodes))
	}
}

// TestOneWatcherOfAFile: one that somebody started by hand beside the service
// would take its half-written files for its own, and leave none.
func TestOneWatcherOfAFile(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		world := newWorld(members(3))
		b := start(t, world, dir, aHTTP)
		defer b.stop()
		b.expect(t, 0, "mail abc, web abc")
		file := filepath.Join(dir, "out")
		layout := standard()
		layout.CA = file + ".ca.pem"
		other, err := lb.New(lb.Options{
			Layout: layout, Render: short(file), Peers: []string{aHTTP}, Dial: world.dial, Install: b.installer,
			State: file + ".state", Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := other.Run(ctx); err == nil || !strings.Contains(err.Error(), "end that first") {
			t.Errorf("a second one runs beside it: %v", err)
		}
	})
}

// TestFullDiskKeepsTheLastGood: what does not fit leaves all as it was.
func TestFullDiskKeepsTheLastGood(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a small file system needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	for _, name := range []string{first, second} {
		if err := os.WriteFile(name, []byte("good "+strings.Repeat("x", 17_000)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// 40 KiB of 64 are used; the first new one fits, the second does not.
	err := lb.Commands{Timeout: time.Second}.Install(t.Context(), []lb.File{{Path: first, Text: []byte("new " + strings.Repeat("y", 17_000))}, {Path: second, Text: []byte(strings.Repeat("z", 60_000))}})
	if err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Fatalf("%v", err)
	}
	for _, name := range []string{first, second} {
		if text, err := os.ReadFile(name); err != nil || !strings.HasPrefix(string(text), "good ") {
			t.Errorf("%s is %.8q now (%v)", name, text, err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("%v is left behind (%v)", entries, err)
	}
}
