package netns

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Do calls a function on a host: sockets that it opens are the host's for ever,
// and so are processes that it starts. That does not hold for goroutines that it
// starts, nor for names that it looks up.
func (l *Lab) Do(host string, f func() error) error {
	space, err := l.Space(host)
	if err != nil {
		return err
	}
	return enter(space, f)
}

func enter(space string, f func() error) error {
	there, err := os.Open(filepath.Join(spacesDir, space))
	if err != nil {
		return fmt.Errorf("cannot enter a network namespace: %w", err)
	}
	defer there.Close()
	done := make(chan error, 1)
	go func() { done <- inside(there, f) }()
	return <-done
}

// inside runs in a goroutine of its own. A namespace is a property of the
// thread; one that cannot go back to its own ends with the goroutine, as it
// stays locked to it.
func inside(there *os.File, f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("cannot enter a network namespace: %w", err)
	}
	defer func() {
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return f()
}

// Start starts a process on a host. It is a child of this one as any other: its
// number and its signals are its own.
func (l *Lab) Start(host string, cmd *exec.Cmd) error { return l.Do(host, cmd.Start) }

// DialContext connects from a host to an address of digits.
func (l *Lab) DialContext(ctx context.Context, host, network, address string) (conn net.Conn, err error) {
	err = l.Do(host, func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens on a host.
func (l *Lab) Listen(host, network, address string) (listener net.Listener, err error) {
	err = l.Do(host, func() error {
		listener, err = net.Listen(network, address)
		return err
	})
	return listener, err
}
