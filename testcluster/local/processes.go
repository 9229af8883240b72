package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"chainmail/lb"
	"chainmail/node/api"
	"chainmail/node/client"
	"chainmail/testcluster/netns"
)

// Options say where the nodes run.
type Options struct {
	Program  string // the chainmail to run; empty: this program
	Dir      string // holds data directories and logs
	BasePort int    // the SMTP port of node a on loopback
	// Lab has a host for each node, the balancer and clients, as one of NewLab. Nil:
	// they share loopback.
	Lab *netns.Lab
	Env []string // KEY=VALUE, added to the environment

	// Ended is told of each node, and of the balancer, that ends without a Stop or
	// Kill. It may be called by any goroutine.
	Ended func(name string, state *os.ProcessState)
}

// Processes are nodes, each a process of its own, and perhaps a balancer, which
// methods take by the name Balancer. Methods for different ones may be called at
// the same time.
type Processes struct {
	options Options
	site    site
	mu      sync.Mutex
	runs    map[string]*process // the last one of each
}

// process is one run of a node.
type process struct {
	cmd   *exec.Cmd
	from  int64 // where what it says begins in its log
	ended chan struct{}
	asked bool // to end; under Processes.mu, as over
	over  bool // it has ended
}

// New checks the options and starts nothing.
func New(o Options) (*Processes, error) {
	var err error
	if o.Program == "" {
		if o.Program, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("cannot tell which program to run: %w: name it", err)
		}
	}
	if o.Dir == "" {
		return nil, errors.New("local: Dir must be set")
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	// The balancer's workers pass through it; nodes' directories are their own.
	if err := lb.MakeDir(o.Dir); err != nil {
		return nil, fmt.Errorf("cannot make the directory of the nodes: %w: choose another", err)
	}
	p := &Processes{options: o, site: loopback{o.BasePort}, runs: map[string]*process{}}
	if o.Lab != nil {
		p.site = hosts{o.Lab}
	}
	return p, nil
}

// DataDir is the data directory of a node.
func (p *Processes) DataDir(name string) string { return filepath.Join(p.options.Dir, name) }

// LogFile is where all that a node says is added.
func (p *Processes) LogFile(name string) string { return p.DataDir(name) + ".log" }

// Known names the nodes that have data in the directory, in order.
func (p *Processes) Known() ([]string, error) { return known(p.options.Dir) }

// left reports whether a node that does not run was drained or removed.
func (p *Processes) left(name string) bool {
	names, err := p.Known()
	return err == nil && slices.Contains(names, name) && hasLeft(p.options.Dir, name, readViews(p.options.Dir, names))
}

// Client asks the admin socket of a node. The caller closes it.
func (p *Processes) Client(name string) *client.Client {
	return client.New(filepath.Join(p.DataDir(name), "admin.sock"))
}

// Addr is where others reach one of the Services of a node or of the balancer,
// which has smtp and http.
func (p *Processes) Addr(name, service string) string {
	addr, _ := p.site.addr(name, service)
	return addr
}

// Check says what keeps nodes, or the balancer, from listening.
func (p *Processes) Check(names ...string) error { return p.site.check(names...) }

// Dial connects from where somebody is.
func (p *Processes) Dial(ctx context.Context, name, addr string) (conn net.Conn, err error) {
	err = p.site.do(name, func() error {
		conn, err = new(net.Dialer).DialContext(ctx, "tcp", addr)
		return err
	})
	return conn, err
}

// listeners are the flags that say where a node is.
func (p *Processes) listeners(name string) (args []string) {
	for _, service := range Services {
		addr, bind := p.site.addr(name, service)
		args = append(args, "--"+service, bind)
		if addr != bind {
			args = append(args, "--advertise-"+service, addr)
		}
	}
	return args
}

// command is the command that starts somebody.
func (p *Processes) command(name string) []string {
	if name == Balancer {
		return p.balancerCommand()
	}
	return append([]string{"node", "--name", name, "--data-dir", p.DataDir(name)}, p.listeners(name)...)
}

// StartCommand is the command line that starts a node or the balancer, for
// people.
func (p *Processes) StartCommand(name string) string {
	return p.site.prefix(name) + strings.Join(append([]string{p.options.Program}, p.command(name)...), " ")
}

// Start runs a node and returns when it is ready: an active member.
func (p *Processes) Start(ctx context.Context, name string) error {
	c := p.Client(name)
	defer c.Close()
	return p.start(ctx, name, func(ctx context.Context) bool {
		s, err := c.Status(ctx)
		return err == nil && s.State == api.StateActive
	})
}

// start runs somebody and returns when they are ready.
func (p *Processes) start(ctx context.Context, name string, ready func(context.Context) bool) error {
	log, err := os.OpenFile(p.LogFile(name), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("cannot keep the log of %s: %w", what(name), err)
	}
	defer log.Close()
	before, err := log.Stat()
	if err != nil {
		return err
	}
	r := &process{cmd: exec.Command(p.options.Program, p.command(name)...), from: before.Size(), ended: make(chan struct{})}
	r.cmd.Env = append(os.Environ(), p.options.Env...)
	r.cmd.Stdout, r.cmd.Stderr = log, log
	// A group of its own: Ctrl-C in a terminal goes to all of a group, and a
	// node takes a second signal for "at once".
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.run(name, r); err != nil {
		return err
	}
	if err := r.await(ctx, ready); err != nil {
		return fmt.Errorf("%s: %w%s", what(name), err, lastWords(log, r.from))
	}
	return nil
}

// up runs a node and returns when it answers, whatever its state is.
func (p *Processes) up(ctx context.Context, name string) error {
	c := p.Client(name)
	defer c.Close()
	return p.start(ctx, name, func(ctx context.Context) bool {
		s, err := c.Status(ctx)
		return err == nil && s.State != api.StateStarting
	})
}

// run starts the process and waits for its end elsewhere.
func (p *Processes) run(name string, r *process) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last := p.runs[name]; last != nil && !last.over {
		return fmt.Errorf("%s runs already", what(name))
	}
	if err := p.site.do(name, r.cmd.Start); err != nil {
		return fmt.Errorf("cannot start %s: %w", what(name), err)
	}
	p.runs[name] = r
	go func() {
		_ = r.cmd.Wait() // ProcessState tells
		p.mu.Lock()
		r.over = true
		asked := r.asked
		p.mu.Unlock()
		close(r.ended)
		if !asked && p.options.Ended != nil {
			p.options.Ended(name, r.cmd.ProcessState)
		}
	}()
	return nil
}

// await waits until the process is ready.
func (r *process) await(ctx context.Context, ready func(context.Context) bool) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ready(ctx) {
		select {
		case <-tick.C:
		case <-r.ended:
			return fmt.Errorf("it ended at once (%v)", r.cmd.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("it is not ready: %w", context.Cause(ctx))
		}
	}
	return nil
}

// Run executes another command of the program where a node is, on its data
// directory, and returns its standard output.
func (p *Processes) Run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, p.options.Program, append(args, "--data-dir", p.DataDir(name))...)
	cmd.Env = append(os.Environ(), p.options.Env...)
	var out, said strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := p.site.do(name, cmd.Start); err != nil {
		return "", err
	}
	err := cmd.Wait()
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		return out.String(), fmt.Errorf("chainmail %s: %s", strings.Join(args, " "), strings.TrimSpace(said.String()))
	}
	return out.String(), err
}

// Join makes a node a member of the cluster that the node peer belongs to. It
// does not start it.
func (p *Processes) Join(ctx context.Context, name, peer string, options ...string) error {
	token, err := p.Run(ctx, peer, "token", "join")
	if err != nil {
		return err
	}
	return p.JoinWith(ctx, name, peer, strings.TrimSpace(token), options...)
}

// JoinWith is Join with a token.
func (p *Processes) JoinWith(ctx context.Context, name, peer, token string, options ...string) error {
	args := append([]string{"join-node", "--name", name, "--peer", p.Addr(peer, "http"), "--token", token}, options...)
	_, err := p.Run(ctx, name, append(args, p.listeners(name)...)...)
	return err
}

// started reports whether anything was.
func (p *Processes) started() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.runs) > 0
}

// death says how a process ended that does not run any more.
func (p *Processes) death(name string) error {
	p.mu.Lock()
	r := p.runs[name]
	p.mu.Unlock()
	log, err := os.Open(p.LogFile(name))
	if err != nil {
		return fmt.Errorf("%s ended (%v), and its log cannot be read: %w", what(name), r.cmd.ProcessState, err)
	}
	defer log.Close()
	return fmt.Errorf("%s ended (%v)%s", what(name), r.cmd.ProcessState, lastWords(log, r.from))
}

// Running names the nodes that run, in order.
func (p *Processes) Running() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	for name, r := range p.runs {
		if !r.over {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// PID is the process of a node, 0 when it does not run.
func (p *Processes) PID(name string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r := p.runs[name]; r != nil && !r.over {
		return r.cmd.Process.Pid
	}
	return 0
}

// signal sends signals to a running node; end says that it shall end by them.
func (p *Processes) signal(name string, end bool, signals ...syscall.Signal) (*process, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.runs[name]
	if r == nil || r.over {
		return nil, fmt.Errorf("%s does not run", what(name))
	}
	r.asked = r.asked || end
	for _, s := range signals {
		if err := r.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return nil, fmt.Errorf("%s: %w", what(name), err)
		}
	}
	return r, nil
}

// Grace is how long a node may take to stop before it is killed.
const Grace = 30 * time.Second

// Stop asks a node to end and waits for it; after Grace it is killed, which is
// an error.
func (p *Processes) Stop(name string) error {
	r, err := p.signal(name, true, syscall.SIGCONT, syscall.SIGTERM)
	if err != nil {
		return err
	}
	timeout := time.NewTimer(Grace)
	defer timeout.Stop()
	select {
	case <-r.ended:
	case <-timeout.C:
		return cmp.Or(p.Kill(name), fmt.Errorf("%s did not stop within %v and was killed", what(name), Grace))
	}
	return p.result(name, r)
}

// StopAll stops all that run, also the balancer, at the same time.
func (p *Processes) StopAll() error {
	names := p.Running()
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() { errs[i] = p.Stop(name) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// AwaitEnd waits until a node has ended, which it may have done already; an
// exit code other than 0 is an error.
func (p *Processes) AwaitEnd(ctx context.Context, name string) error {
	p.mu.Lock()
	r := p.runs[name]
	p.mu.Unlock()
	if r == nil {
		return fmt.Errorf("%s was not started", what(name))
	}
	select {
	case <-r.ended:
		return p.result(name, r)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// result is an error unless the process ended well.
func (p *Processes) result(name string, r *process) error {
	if code := r.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("%s ended with %v: see %s", what(name), r.cmd.ProcessState, p.LogFile(name))
	}
	return nil
}

// Kill is kill -9, and waits.
func (p *Processes) Kill(name string) error {
	r, err := p.signal(name, true, syscall.SIGKILL)
	if err != nil {
		return err
	}
	<-r.ended
	return nil
}

// Pause freezes a node: it keeps its connections and says nothing.
func (p *Processes) Pause(name string) error {
	_, err := p.signal(name, false, syscall.SIGSTOP)
	return err
}

// Resume lets a frozen node go on.
func (p *Processes) Resume(name string) error {
	_, err := p.signal(name, false, syscall.SIGCONT)
	return err
}

// Wipe removes all data of a node that does not run.
func (p *Processes) Wipe(name string) error {
	if p.PID(name) != 0 {
		return fmt.Errorf("%s runs", what(name))
	}
	if err := os.RemoveAll(p.DataDir(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
