package lb

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// OwnOptions are for an Own. Those without a word on it are needed.
type OwnOptions struct {
	Dir     string // a folder for all that nginx reads and writes
	Program string // file of nginx
	Logger  *slog.Logger
	// User of the workers when this process is root's; empty: www-data, nginx or
	// nobody.
	User string
	// Stop is how long sessions may go on when it is asked to end; 0: 30 seconds.
	Stop time.Duration
	// Ready is called once, when nginx takes connections; may be nil.
	Ready func()
}

// Own is an nginx that this process starts, reloads and ends. All its files are
// in one folder, and it needs root only for ports below 1024.
type Own struct {
	opts OwnOptions
	died chan exit

	mu      sync.Mutex
	master  *os.Process
	emerged string // the last line with which nginx refused something
}

// exit is how nginx ended.
type exit struct{ err error }

const (
	defaultStop = 30 * time.Second
	killTime    = 5 * time.Second  // between the ways to end nginx
	startTime   = 15 * time.Second // to bind its ports: it tries for some seconds itself
	logSize     = 64 << 20         // bytes at which the access log is begun anew
)

// NewOwn checks the options and makes the folder.
func NewOwn(o OwnOptions) (*Own, error) {
	var err error
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	if err := checkFile("--dir", o.Dir); err != nil {
		return nil, err
	}
	if o.Stop == 0 {
		o.Stop = defaultStop
	}
	for _, dir := range []string{"", "temp", "logs"} {
		if err := MakeDir(filepath.Join(o.Dir, dir)); err != nil {
			return nil, fmt.Errorf("cannot make nginx's folder: %w: name another one with --dir", err)
		}
	}
	return &Own{opts: o, died: make(chan exit, 1)}, nil
}

// MakeDir makes a folder that nginx's workers, who are not root, may pass through
// whatever the umask is, and its parents. One that exists stays as somebody wants
// it.
func MakeDir(dir string) error {
	switch info, err := os.Stat(dir); {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return fmt.Errorf("%s is no folder", dir)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := MakeDir(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o711); err != nil {
		return err
	}
	return os.Chmod(dir, 0o711)
}

// ConfigFile is where the configuration is.
func (o *Own) ConfigFile() string { return filepath.Join(o.opts.Dir, "nginx.conf") }

// CAFile is where the CA's certificate is.
func (o *Own) CAFile() string { return filepath.Join(o.opts.Dir, "ca.pem") }

// StateFile is for Options.State.
func (o *Own) StateFile() string { return filepath.Join(o.opts.Dir, "state.json") }

// Configure completes what is known of the program.
func (o *Own) Configure(n Nginx) Nginx {
	n.PID = filepath.Join(o.opts.Dir, "nginx.pid")
	n.ErrorLog, n.Foreground = "stderr", true
	n.Temp = filepath.Join(o.opts.Dir, "temp")
	if n.AccessLog != "off" {
		n.AccessLog = filepath.Join(o.opts.Dir, "logs", "access.log")
	}
	n.User = ""
	if os.Geteuid() == 0 {
		n.User = o.workers()
	}
	return n
}

// workers is the user of nginx's workers, who must get at their temporary files.
func (o *Own) workers() string {
	if o.opts.User != "" {
		return o.opts.User
	}
	if closed := closedTo(filepath.Join(o.opts.Dir, "temp")); closed != "" {
		o.opts.Logger.Warn("nginx's workers run as root, since other users cannot enter a folder that was there before: let them pass through it, or name a folder elsewhere with --dir",
			"folder", closed, "do", "chmod o+x "+closed)
		return "root"
	}
	for _, name := range []string{"www-data", "nginx", "nobody"} {
		if _, err := user.Lookup(name); err == nil {
			return name
		}
	}
	return "root"
}

// closedTo is the first folder on the way to dir that other users cannot enter;
// empty: there is none.
func closedTo(dir string) string {
	for ; ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm()&1 == 0 {
			return dir
		}
		if dir == filepath.Dir(dir) {
			return ""
		}
	}
}

// begin locks the folder. With a configuration of an earlier run nginx starts at
// once, so a balancer that was restarted works also while the cluster does not
// answer.
func (o *Own) begin(ctx context.Context) (unlock func(), err error) {
	unlock, err = lockDir(o.opts.Dir)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(o.ConfigFile()); err == nil {
		if err := o.again(ctx); err != nil {
			unlock()
			return nil, advise(err)
		}
	}
	return unlock, nil
}

// run waits until ctx ends, then ends nginx in order: no new connections, and
// some time for the sessions that there are. It is an error when nginx ends by
// itself.
func (o *Own) run(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case how := <-o.died:
			return o.ended(how.err)
		case <-ctx.Done():
			return o.stop()
		case <-tick.C:
			o.rotate()
		}
	}
}

// again starts nginx with what an earlier run left.
func (o *Own) again(ctx context.Context) error {
	if err := o.commands().checkInPlace(ctx, o.ConfigFile()); err != nil {
		o.opts.Logger.Warn("the configuration of an earlier run is not used", "err", advise(err).Error())
		return os.Rename(o.ConfigFile(), o.ConfigFile()+suffixRefused) // kept: the check may have failed for other reasons
	}
	o.opts.Logger.Info("nginx starts with the configuration of an earlier run", "file", o.ConfigFile())
	return o.start(ctx)
}

func (c Commands) checkInPlace(ctx context.Context, file string) error {
	return c.run(ctx, strings.ReplaceAll(c.Check, Candidate, shellQuote(file)))
}

func (o *Own) commands() Commands {
	return Commands{
		Check:   fmt.Sprintf("%s -t -q -p %s -e stderr -c %s", shellQuote(o.opts.Program), shellQuote(o.opts.Dir), Candidate),
		Timeout: 30 * time.Second,
		reload:  o.reload,
	}
}

// Install checks the files and gives them to nginx, which is started by the
// first ones.
func (o *Own) Install(ctx context.Context, files []File) error {
	return o.commands().Install(ctx, files)
}

// reload starts nginx, or lets it read its files again.
func (o *Own) reload(ctx context.Context) error {
	o.mu.Lock()
	master := o.master
	o.emerged = ""
	o.mu.Unlock()
	if master == nil {
		return o.start(ctx)
	}
	before := children(master.Pid)
	if err := master.Signal(syscall.SIGHUP); err != nil {
		return err
	}
	return o.await(ctx, func() bool {
		now := children(master.Pid)
		return len(before) == 0 || slices.ContainsFunc(now, func(pid string) bool { return !slices.Contains(before, pid) })
	})
}

// runs reports whether nginx does.
func (o *Own) runs() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.master != nil
}

// children are the processes of nginx's workers; none where the system does not
// tell.
func children(pid int) []string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	return strings.Fields(string(text))
}

// await waits for a sign that nginx did what it was told to.
func (o *Own) await(ctx context.Context, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if done() {
			return nil
		}
		o.mu.Lock()
		refused, gone := o.emerged, o.master == nil
		o.mu.Unlock()
		if gone {
			return errors.New(strings.TrimSuffix("nginx ended: "+refused, ": "))
		}
		if refused != "" && !strings.Contains(refused, "bind()") { // it tries that some times
			return errors.New(refused)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.New(strings.TrimSuffix("nginx does not do what it was told: "+refused, ": "))
		}
	}
}

// start runs nginx, which is ready when it has written its PID file.
func (o *Own) start(ctx context.Context) error {
	pidFile := filepath.Join(o.opts.Dir, "nginx.pid")
	os.Remove(pidFile)
	cmd := exec.Command(o.opts.Program, "-p", o.opts.Dir, "-e", "stderr", "-c", o.ConfigFile())
	cmd.Dir = o.opts.Dir
	cmd.Env = environment()
	said, says, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd.Stderr = says
	// A group of its own: Ctrl-C is for this process, which ends nginx in order.
	cmd.SysProcAttr = ownGroup()
	started := make(chan error)
	go func() {
		// nginx dies with the thread that made it, if this process is killed: it would
		// hold the ports against the next one.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		says.Close()
		if err != nil {
			said.Close()
			started <- err
			return
		}
		o.mu.Lock()
		o.master = cmd.Process
		o.mu.Unlock()
		close(started)
		var relaying sync.WaitGroup
		relaying.Go(func() { o.relay(said) })
		err = cmd.Wait()
		// Workers outlive a master that was killed: nobody would lead them.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		relaying.Wait()
		said.Close()
		o.mu.Lock()
		o.master = nil
		o.mu.Unlock()
		o.died <- exit{err}
	}()
	if err := <-started; err != nil {
		return err
	}
	err = o.await(ctx, func() bool {
		text, err := os.ReadFile(pidFile)
		return err == nil && strings.TrimSpace(string(text)) != ""
	})
	if err == nil {
		o.opts.Logger.Info("nginx runs", "program", o.opts.Program, "folder", o.opts.Dir)
		if ready := o.opts.Ready; ready != nil {
			o.opts.Ready = nil
			ready()
		}
	}
	return err
}

// environment is what nginx gets of this process's: no token, and no line to the
// supervisor.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "CHAINMAIL_") || strings.HasPrefix(v, "NOTIFY_SOCKET=") || strings.HasPrefix(v, "WATCHDOG_")
	})
}

var nginxLine = regexp.MustCompile(`^(?:\d{4}/\d\d/\d\d \d\d:\d\d:\d\d |nginx: )\[(\w+)\] (?:\d+#\d+: )?(.*)$`)

// relay makes nginx's log part of this process's.
func (o *Own) relay(r io.Reader) {
	lines := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := lines.ReadString('\n')
		if line = strings.TrimSpace(line); line != "" {
			o.relayLine(line)
		}
		if err != nil {
			return
		}
	}
}

func (o *Own) relayLine(line string) {
	level, text := slog.LevelInfo, line
	if m := nginxLine.FindStringSubmatch(line); m != nil {
		text = m[2]
		switch m[1] {
		case "emerg":
			level = slog.LevelError
			o.mu.Lock()
			if o.emerged == "" || !strings.HasPrefix(text, "still could not") { // the lines before say what
				o.emerged = text
			}
			o.mu.Unlock()
		case "alert", "crit", "error":
			level = slog.LevelError
		case "warn":
			level = slog.LevelWarn
		}
	}
	o.opts.Logger.Log(context.Background(), level, "nginx", "said", text)
}

// ended explains the end of nginx that nobody asked for.
func (o *Own) ended(err error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	how := "exit status 0"
	if err != nil {
		how = err.Error()
	}
	if o.emerged != "" {
		how += ": " + o.emerged
	}
	return advise(fmt.Errorf("nginx ended: %s", how))
}

// stop ends nginx: first without new connections, then at once.
func (o *Own) stop() error {
	o.mu.Lock()
	master := o.master
	o.mu.Unlock()
	if master == nil {
		return nil
	}
	o.opts.Logger.Info("nginx is asked to end when its sessions have", "at_most", o.opts.Stop.String())
	for _, step := range []struct {
		signal   os.Signal
		patience time.Duration
	}{{syscall.SIGQUIT, o.opts.Stop}, {syscall.SIGTERM, killTime}, {syscall.SIGKILL, killTime}} {
		_ = master.Signal(step.signal) // it may have ended
		select {
		case <-o.died: // however: it was asked to
			return nil
		case <-time.After(step.patience):
			o.opts.Logger.Warn("nginx still runs", "after", step.patience.String(), "signal", step.signal.String())
		}
	}
	return errors.New("nginx does not end")
}

// rotate begins a new access log when the old one is large; one old one is kept.
func (o *Own) rotate() {
	file := filepath.Join(o.opts.Dir, "logs", "access.log")
	info, err := os.Stat(file)
	if err != nil || info.Size() < logSize {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.master == nil {
		return
	}
	if err := errors.Join(os.Rename(file, file+".1"), o.master.Signal(syscall.SIGUSR1)); err != nil {
		o.opts.Logger.Warn("the access log cannot be begun anew", "file", file, "err", err.Error())
	}
}

// lockDir makes sure that one process at a time owns a folder.
func lockDir(dir string) (unlock func(), err error) {
	unlock, err = lockFile(filepath.Join(dir, "lock"))
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK):
		err = fmt.Errorf("another 'chainmail lb run' uses %s: end that first, or name another folder with --dir", dir)
	case errors.Is(err, fs.ErrPermission): // somebody else's, of a run by another user
		err = fmt.Errorf("%w: let the user who runs this own all of it: chown -R USER %s", err, dir)
	}
	return unlock, err
}

// lockFile holds a lock that ends with this process at the latest.
func lockFile(name string) (unlock func(), err error) {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		return nil, err
	}
	return func() { file.Close() }, nil
}

// RunOwn runs a Watcher and its nginx until ctx ends or nginx does.
func RunOwn(ctx context.Context, w *Watcher, o *Own) error {
	unlock, err := o.begin(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var following sync.WaitGroup
	var followed error
	following.Go(func() {
		defer cancel()
		followed = w.Run(ctx)
	})
	err = o.run(ctx)
	cancel()
	following.Wait()
	return errors.Join(err, followed)
}
