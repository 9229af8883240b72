package testcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"chainmail/archive"
	"chainmail/node"
	"chainmail/node/client"
	"chainmail/testcluster/netsim"
)

// version is what virtual nodes say they are, unless a test upgrades them.
const version = "test"

// virtual is nodes in this process: on a network in memory, with archives on
// disks in memory, and with the few other files in a directory of the machine.
type virtual struct {
	options Options
	net     *netsim.Network
	output  io.Writer
	root    string // holds the directories of all machines

	mu       sync.Mutex
	machines map[string]*machine
	cuts     uint64 // seeds of power cuts
}

// machine is where a node runs.
type machine struct {
	config  node.Config
	version string // of its program
	disk    *archive.Disk
	life    *life // nil: nothing runs
	client  *client.Client
	// ghost is a life that was killed, and goes on unseen until it has ended;
	// kept is the directory with the files of the moment of its death.
	ghost *life
	kept  string
}

// life is one run of a node.
type life struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error // when done is closed
}

func newVirtual(t testing.TB, o Options, n *netsim.Network) *virtual {
	t.Helper()
	root, err := os.MkdirTemp("", "cm") // t.TempDir is too long for a data directory's socket
	if err != nil {
		t.Fatal(err)
	}
	return &virtual{options: o, net: n, output: t.Output(), root: root, machines: map[string]*machine{}}
}

func (v *virtual) machine(name string) *machine {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.machines[name]
}

func (v *virtual) add(name string, role node.Role) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	ip := v.net.Host(name).IP().String()
	c := node.Default()
	c.Name, c.Role, c.DataDir = name, role, filepath.Join(v.root, name)
	for port, address := range map[string]*string{"25": &c.SMTP, "8091": &c.Chain, "8092": &c.Gossip, "8093": &c.Raft, "8025": &c.HTTP} {
		*address = net.JoinHostPort(ip, port)
	}
	c.Disk.MinFree = node.MiB
	if v.options.Config != nil {
		v.options.Config(&c)
	}
	v.machines[name] = &machine{config: c.Complete(), version: version, disk: archive.NewDisk()}
	return nil
}

// network is that of a host, for its present process.
func (v *virtual) network(name string) *node.Network {
	h := v.net.Host(name)
	return &node.Network{Listen: h.Listen, ListenPacket: h.ListenPacket, Dial: h.Dial}
}

func (v *virtual) logger(name string) *slog.Logger {
	level := slog.LevelInfo
	if os.Getenv("TESTCLUSTER_DEBUG") != "" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(v.output, &slog.HandlerOptions{Level: level})).With("host", name)
}

func (v *virtual) start(ctx context.Context, name string) error {
	m := v.machine(name)
	if err := m.bury(); err != nil {
		return err
	}
	v.net.PowerOn(name)
	ready := make(chan struct{})
	n, err := node.New(m.config, node.Options{
		Logger: v.logger(name), Version: m.version, Ready: sync.OnceFunc(func() { close(ready) }),
		Network: v.network(name), Disk: m.disk,
	})
	if err != nil {
		return err
	}
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l := &life{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		if l.err = n.Run(own); l.err != nil {
			v.logger(name).Warn("the node ended", "err", l.err)
		}
	}()
	select {
	case <-ready:
	case <-l.done:
		cancel()
		return fmt.Errorf("it ended at once: %w", l.err)
	case <-ctx.Done():
		cancel()
		<-l.done
		return errors.Join(fmt.Errorf("it is not ready: %w", ctx.Err()), l.err)
	}
	socket := node.SocketPath(m.config.DataDir)
	host := v.net.Host(name)
	v.mu.Lock()
	defer v.mu.Unlock()
	m.life = l
	m.client = client.NewSocket(socket, host.Dial)
	return nil
}

// leave takes the running node off its machine.
func (v *virtual) leave(name string) (*machine, *life, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	m := v.machines[name]
	if m == nil || m.life == nil {
		return nil, nil, errors.New("it does not run")
	}
	l := m.life
	m.client.Close()
	m.life, m.client = nil, nil
	return m, l, nil
}

func (v *virtual) ended(ctx context.Context, name string) error {
	l := v.machine(name).life
	if l == nil {
		return errors.New("it does not run")
	}
	select {
	case <-l.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if _, _, err := v.leave(name); err != nil {
		return err
	}
	l.cancel()
	return l.err
}

func (v *virtual) stop(name string) error {
	_, l, err := v.leave(name)
	if err != nil {
		return err
	}
	l.cancel()
	<-l.done
	if k := v.net.Sockets(name); l.err == nil && k > 0 {
		return fmt.Errorf("it left %d sockets open", k)
	}
	return l.err
}

// kill takes the network away first, so that nobody hears what happens to the
// node afterwards; then it keeps what the disks hold. What is left of the node
// goes on until it has ended.
func (v *virtual) kill(name string, how harm) error {
	m, l, err := v.leave(name)
	if err != nil {
		return err
	}
	keep := 100
	if how == powerCut {
		v.net.PowerOff(name)
		v.cuts++
		keep = []int{0, 50, 100}[v.cuts%3]
	} else {
		v.net.Crash(name)
	}
	// All goroutines come to rest, so that the files are those of one moment.
	synctest.Wait()
	m.disk = m.disk.Crash(keep, v.options.Seed+v.cuts)
	m.ghost, m.kept = l, m.config.DataDir+".kept"
	err = copyDir(m.config.DataDir, m.kept)
	l.cancel()
	return err
}

// bury waits for the ghost of a killed node, and takes what it did after its
// death off the disk again.
func (m *machine) bury() error {
	if m.ghost == nil {
		return nil
	}
	<-m.ghost.done
	m.ghost = nil
	if err := os.RemoveAll(m.config.DataDir); err != nil {
		return err
	}
	return os.Rename(m.kept, m.config.DataDir)
}

// cutAtSync cuts the power just before the n-th sync of the archive: what kill
// finds on the disk then is what was there at that moment. It returns when that
// has happened, or after the limit.
func (v *virtual) cutAtSync(name string, n int, limit time.Duration) {
	m := v.machine(name)
	disk := m.disk
	cut := make(chan *archive.Disk, 1)
	var mu sync.Mutex
	disk.OnOp(func(op archive.Op) error {
		if op.Kind != archive.OpSync {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if n--; n == 0 {
			v.net.PowerOff(name)
			cut <- disk.Crash(50, v.options.Seed)
		}
		return nil
	})
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	select {
	case m.disk = <-cut:
	case <-timeout.C:
	}
}

func (v *virtual) wipe(name string) error {
	m := v.machine(name)
	if m.life != nil {
		return errors.New("it runs")
	}
	if err := m.bury(); err != nil {
		return err
	}
	m.disk = archive.NewDisk()
	return os.RemoveAll(m.config.DataDir)
}

func (v *virtual) join(ctx context.Context, name, peer, token string, replace bool) error {
	if err := v.machine(name).bury(); err != nil {
		return err
	}
	v.net.PowerOn(name)
	_, err := node.Join(ctx, node.JoinOptions{
		Config: v.machine(name).config, Peer: v.machine(peer).config.HTTP, Token: token,
		Replace: replace, Version: version, Network: v.network(name),
	})
	return err
}

func (v *virtual) recover(_ context.Context, name string) error {
	m := v.machine(name)
	if m.life != nil {
		return errors.New("it runs")
	}
	if err := m.bury(); err != nil {
		return err
	}
	_, err := node.Recover(m.config.DataDir)
	return err
}

func (v *virtual) dial(ctx context.Context, name string) (net.Conn, error) {
	return v.net.Host(Clients).Dial(ctx, "tcp", v.machine(name).config.SMTP)
}

// client is that of the running node; of one that does not run, a client that
// says so.
func (v *virtual) client(name string) *client.Client {
	v.mu.Lock()
	defer v.mu.Unlock()
	if m := v.machines[name]; m != nil && m.client != nil {
		return m.client
	}
	return client.NewSocket(name, func(context.Context, string, string) (net.Conn, error) {
		return nil, fmt.Errorf("%s does not run", name)
	})
}

func (v *virtual) close() error {
	for _, m := range v.machines {
		if m.ghost != nil {
			<-m.ghost.done
		}
	}
	time.Sleep(farewell)
	return os.RemoveAll(v.root)
}

// farewell is how long goroutines of libraries may outlive their node: at the
// end of the test the clock stops, and who waits for it then waits for ever.
const farewell = time.Minute

// copyDir copies a directory with the modes of its files: some must be private.
// A directory that is not there is an empty one.
func copyDir(from, to string) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path == from {
			return nil
		}
		if err != nil {
			return err
		}
		rest, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		info, err := e.Info()
		switch {
		case err != nil:
			return err
		case e.IsDir():
			return os.MkdirAll(filepath.Join(to, rest), info.Mode().Perm())
		case !info.Mode().IsRegular():
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rest), b, info.Mode().Perm())
	})
}
