package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// server is a mail server that runs and can be measured.
type server struct {
	addr string // of SMTP
	pid  int    // of the process whose descendants are all of the server
	stop func() error
}

// errAbsent is why a server is left out: its program is not on this machine.
var errAbsent = errors.New("not on this machine")

// child is a program that serves in the foreground.
type child struct {
	cmd    *exec.Cmd
	output *os.File // a nameless one: what it prints costs us nothing, and its end says why it failed
	done   chan struct{}
}

func startChild(name string, args ...string) (*child, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errAbsent, err)
	}
	output, err := os.CreateTemp("", "peerbench-output-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(output.Name()); err != nil {
		return nil, err
	}
	c := &child{cmd: exec.Command(path, args...), output: output, done: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr = output, output
	if err := c.cmd.Start(); err != nil {
		return nil, errors.Join(err, output.Close())
	}
	go func() {
		_ = c.cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// end sends a signal and waits for the process to go.
func (c *child) end(sig os.Signal) error {
	if err := c.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-c.done:
		return c.output.Close()
	case <-time.After(time.Minute):
		_ = c.cmd.Process.Kill()
		return fmt.Errorf("%s did not end within a minute after %v and was killed", c.cmd.Path, sig)
	}
}

// until asks ready every few milliseconds until it says yes.
func (c *child) until(ctx context.Context, ready func() bool) error {
	limit := time.After(time.Minute)
	for !ready() {
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), c.end(syscall.SIGKILL))
		case <-c.done:
			return fmt.Errorf("%s ended at once: %s", c.cmd.Path, c.lastWords())
		case <-limit:
			return errors.Join(fmt.Errorf("%s was not ready within a minute", c.cmd.Path), c.end(syscall.SIGKILL))
		case <-time.After(2 * time.Millisecond):
		}
	}
	return nil
}

// lastWords is the end of what an ended child printed.
func (c *child) lastWords() string {
	b, err := io.ReadAll(io.NewSectionReader(c.output, 0, 1<<20))
	if err != nil {
		return err.Error()
	}
	return tail(string(b))
}

func tail(s string) string {
	s = strings.TrimSpace(s)
	return s[max(0, len(s)-500):]
}

func answers(addr string) bool {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// freeAddr is a loopback address that nobody listens on just now.
func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// startNode starts a chainmail node with its defaults and waits for readyz.
func (b *bench) startNode(ctx context.Context, dir string) (*node, error) {
	smtp, err1 := freeAddr()
	httpAddr, err2 := freeAddr()
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	begun := time.Now()
	c, err := startChild(b.binary, "node", "--name", "bench", "--data-dir", dir, "--smtp", smtp, "--http", httpAddr)
	if err != nil {
		return nil, err
	}
	err = c.until(ctx, func() bool {
		resp, err := http.Get("http://" + httpAddr + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	if err != nil {
		return nil, err
	}
	return &node{
		child: c, server: server{smtp, c.pid(), func() error { return c.end(syscall.SIGTERM) }},
		socket: filepath.Join(dir, "admin.sock"), took: time.Since(begun),
	}, nil
}

// node is a chainmail node.
type node struct {
	*child
	server
	socket string        // of its administrator
	took   time.Duration // from exec to the first 200 of /readyz
}

// startSink starts Postfix's test server, which stores nothing.
func startSink(ctx context.Context) (*server, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	args := []string{addr, "1000"}
	if os.Geteuid() == 0 {
		args = append([]string{"-u", "nobody"}, args...) // it refuses to serve as root
	}
	return startForeground(ctx, addr, "smtp-sink", args...)
}

func startForeground(ctx context.Context, addr, name string, args ...string) (*server, error) {
	c, err := startChild(name, args...)
	if err != nil {
		return nil, err
	}
	if err := c.until(ctx, func() bool { return answers(addr) }); err != nil {
		return nil, err
	}
	return &server{addr, c.pid(), func() error { return c.end(syscall.SIGTERM) }}, nil
}
