package testcluster

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"testing"

	"chainmail/node"
	"chainmail/node/client"
	"chainmail/testcluster/local"
)

// Processes makes a cluster of processes of the real program, on free ports of
// loopback.
func Processes(t testing.TB, program string, o Options) *Cluster {
	t.Helper()
	o = o.withDefaults()
	base, err := local.FreeBasePort(o.Nodes)
	if err != nil {
		t.Fatal(err)
	}
	return form(t, o, nil, newProcesses(t, local.Options{Program: program, BasePort: base}))
}

// processes is local.Processes as a backend.
type processes struct {
	*local.Processes
	dir     string
	mu      sync.Mutex
	clients map[string]*client.Client
}

// newProcesses makes a place for the processes of a test.
func newProcesses(t testing.TB, o local.Options) *processes {
	t.Helper()
	dir, err := os.MkdirTemp("", "cm") // t.TempDir is too long for a data directory's socket
	if err != nil {
		t.Fatal(err)
	}
	o.Dir, o.Env = dir, append(o.Env, "CHAINMAIL_DISK_MIN_FREE=1MiB")
	o.Ended = func(name string, state *os.ProcessState) {
		if !state.Success() { // a node that was drained ends
			t.Errorf("%s ended by itself: %v", name, state)
		}
	}
	b := &processes{dir: dir, clients: map[string]*client.Client{}}
	if b.Processes, err = local.New(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			b.showLogs(t)
		}
		os.RemoveAll(dir)
	})
	return b
}

func (p *processes) add(_ string, role node.Role) error {
	if role != node.RoleData {
		return errors.New("processes are data members only")
	}
	return nil
}

func (p *processes) start(ctx context.Context, name string) error { return p.Start(ctx, name) }
func (p *processes) stop(name string) error                       { return p.Stop(name) }
func (p *processes) kill(name string, _ harm) error               { return p.Kill(name) }
func (p *processes) wipe(name string) error                       { return p.Wipe(name) }

func (p *processes) ended(ctx context.Context, name string) error { return p.AwaitEnd(ctx, name) }

func (p *processes) join(ctx context.Context, name, peer, token string, replace bool) error {
	var options []string
	if replace {
		options = append(options, "--replace")
	}
	return p.JoinWith(ctx, name, peer, token, options...)
}

func (p *processes) recover(ctx context.Context, name string) error {
	_, err := p.Run(ctx, name, "recover", "--i-lost-the-quorum", "--yes", name)
	return err
}

func (p *processes) dial(ctx context.Context, name string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", p.Addr(name, "smtp"))
}

func (p *processes) client(name string) *client.Client {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.clients[name] == nil {
		p.clients[name] = p.Client(name)
	}
	return p.clients[name]
}

func (p *processes) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.clients {
		c.Close()
	}
	return nil
}

// showLogs logs the end of what each node said.
func (p *processes) showLogs(t testing.TB) {
	const enough = 8 << 10
	names, err := p.Known()
	if err != nil {
		t.Log(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(p.LogFile(name))
		if err != nil {
			t.Log(err)
			continue
		}
		t.Logf("node %s said:\n%s", name, b[max(0, len(b)-enough):])
	}
}
