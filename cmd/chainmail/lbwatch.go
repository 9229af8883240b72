package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"chainmail/lb"
	"chainmail/node"
)

// lbFollow are the flags of the commands that follow the cluster.
type lbFollow struct {
	source    lbSource
	layout    lbLayout
	metrics   string
	level     string
	format    string
	down, up  time.Duration
	reloadGap time.Duration
}

func (f *lbFollow) addFlags(flags *pflag.FlagSet) {
	flags.SortFlags = false
	f.source.addFlags(flags)
	f.layout.addFlags(flags)
	flags.StringVar(&f.metrics, "metrics", "", "`ADDRESS` of /metrics and /healthz (default none)")
	flags.DurationVar(&f.down, "down-after", 3*time.Second, "how long a node may be silent before it gets no more connections")
	flags.DurationVar(&f.up, "up-after", 2*time.Second, "how long it must be well again before it gets some")
	flags.DurationVar(&f.reloadGap, "reload-every", 5*time.Second, "time between two reloads on the average; two may follow one another")
	flags.StringVar(&f.level, "log-level", "info", "`LEVEL` of the log: debug, info, warn or error")
	flags.StringVar(&f.format, "log-format", string(node.LogText), "`FORMAT` of the log: text or json")
	addLBConfigFlag(flags)
}

func (f *lbFollow) logger(cmd *cobra.Command) (*slog.Logger, error) {
	config := node.Default().Log
	config.Level, config.Format = node.LogLevel(f.level), node.LogFormat(f.format)
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.level)); err != nil {
		return nil, usageError{fmt.Errorf("--log-level is %q: use debug, info, warn or error", f.level)}
	}
	if config.Format != node.LogText && config.Format != node.LogJSON {
		return nil, usageError{fmt.Errorf("--log-format is %q: use text or json", f.format)}
	}
	return newLogger(cmd.ErrOrStderr(), config), nil
}

// follow runs a Watcher, with its metrics beside it.
func (f *lbFollow) follow(cmd *cobra.Command, o lb.Options, run func(context.Context, *lb.Watcher) error) error {
	dial, peers, err := f.source.open()
	if err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	o.Dial, o.Peers, o.Registry, o.LocalAddr = dial, peers, registry, localAddress
	o.Lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
		return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	}
	o.Connect = connectFrom(o.Layout.Source)
	o.Down, o.Up, o.ReloadEvery = f.down, f.up, f.reloadGap
	w, err := lb.New(o)
	if err != nil {
		return usageError{err}
	}
	stopServing, err := f.serve(w, registry, o.Logger)
	if err != nil {
		return err
	}
	defer stopServing()
	return run(cmd.Context(), w)
}

// serve answers /metrics and /healthz.
func (f *lbFollow) serve(w *lb.Watcher, registry *prometheus.Registry, logger *slog.Logger) (stop func(), err error) {
	if f.metrics == "" {
		return func() {}, nil
	}
	l, err := net.Listen("tcp", f.metrics)
	if err != nil {
		return nil, fmt.Errorf("--metrics: %w: choose another address with --metrics", err)
	}
	server := &http.Server{Handler: w.Handler(registry), ReadHeaderTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			logger.Error("metrics are served no more", "err", err.Error())
		}
	})
	logger.Info("metrics are served", "address", l.Addr().String())
	return func() {
		_ = server.Close()
		serving.Wait()
	}, nil
}

// lbStuck is longer than a look at the cluster with a check and a reload that
// hang until their time is over.
const lbStuck = 2 * time.Minute

// supervise tells the supervisor of this process of a Watcher's life.
func supervise(ctx context.Context, w *lb.Watcher, ready <-chan struct{}, closing time.Duration) (ended func(error)) {
	return newSupervisor().follow(ctx, life{
		opening: "asking the cluster",
		ready:   ready,
		look: func(context.Context) (string, error) {
			s := w.Status()
			if since := time.Since(s.LookedAt); !s.LookedAt.IsZero() && since > lbStuck {
				return "", fmt.Errorf("it has not looked at the cluster for %v", since.Round(time.Second))
			}
			return lbSummary(s), nil
		},
		closing: "stopping: sessions finish",
		drain:   closing,
	})
}

// lbSummary is the state of a balancer in a line.
func lbSummary(s lb.Status) string {
	if s.Problem != "" {
		return s.Problem
	}
	line := "mail to " + strings.Join(s.Mail, ", ")
	for _, o := range s.Out {
		if o.Why == lb.NoSMTP {
			line += "; not to " + o.Node + ": " + string(o.Why)
		}
	}
	if s.Trusted != nil && !*s.Trusted {
		line += "; the nodes do not know this balancer: see the log"
	}
	return line
}

// lbKinds are the kinds of files that lb watch writes, each with the commands
// that check and reload it.
var lbKinds = map[string]struct {
	part          lb.Part // of nginx; empty: HAProxy's
	check, reload string
}{
	"nginx":        {lb.Complete, "nginx -t -q -c " + lb.Candidate, "systemctl reload nginx"},
	"nginx-main":   {lb.MainPart, "nginx -t -q", "systemctl reload nginx"},
	"nginx-stream": {lb.StreamPart, "nginx -t -q", "systemctl reload nginx"},
	"nginx-http":   {lb.HTTPPart, "nginx -t -q", "systemctl reload nginx"},
	"haproxy":      {"", "haproxy -c -q -f " + lb.Candidate, "systemctl reload haproxy"},
}

// lbOut is a file to keep.
type lbOut struct{ kind, file string }

func parseLBOuts(texts []string) (outs []lbOut, err error) {
	for _, text := range texts {
		o := lbOut{"nginx", text}
		if kind, file, ok := strings.Cut(text, "="); ok {
			o = lbOut{kind, file}
		}
		if _, ok := lbKinds[o.kind]; !ok || o.file == "" {
			return nil, fmt.Errorf("--out is %q: write FILE, or KIND=FILE with nginx, nginx-main, nginx-stream, nginx-http or haproxy", text)
		}
		if o.file, err = filepath.Abs(o.file); err != nil {
			return nil, err
		}
		outs = append(outs, o)
	}
	if len(outs) == 0 {
		return nil, errors.New("--out is missing: name the file that the balancer reads")
	}
	return outs, nil
}

// lbCommand is a command of the operator's, its default, or none.
func lbCommand(given, standard string) string {
	switch given {
	case "":
		return standard
	case "none":
		return ""
	default:
		return given
	}
}

func newLBWatchCommand() *cobra.Command {
	var (
		follow        lbFollow
		nginx         lbNginx
		haproxy       lbHAProxy
		texts         []string
		check, reload string
	)
	cmd := &cobra.Command{
		Use:   "watch --out [KIND=]FILE",
		Short: "Follow the cluster, and keep a balancer's configuration as it is",
		Long: `Follows the cluster from any member, and writes the file anew when a node comes, goes,
drains or dies: checks it, gives it its name at once, and reloads the balancer. When
check or reload fails, the file that was there comes back, and it is tried again.

KIND is nginx (a whole nginx.conf, the default), nginx-main, nginx-stream, nginx-http
(pieces to include, see 'lb nginx'), or haproxy. Give --out several times for several
files. With {} in --check, it is run for each new file under another name, in place
of {}; without, it is run when the files are in their places, as pieces need it.

Root writes only into folders of root's: in one of another user, that user could put
anything into the file that the balancer then reads as root.`,
		Example: `  chainmail lb watch --peer 192.0.2.1:8025 --token-file /etc/chainmail/lb.token --out /etc/nginx/nginx.conf
  chainmail lb watch --out nginx-main=/etc/nginx/modules-enabled/90-chainmail.conf --out nginx-http=/etc/nginx/conf.d/chainmail.conf
  chainmail lb watch --out haproxy=/etc/haproxy/haproxy.cfg --metrics 127.0.0.1:8026`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := completeLB(cmd); err != nil {
				return err
			}
			outs, err := parseLBOuts(texts)
			if err != nil {
				return usageError{err}
			}
			logger, err := follow.logger(cmd)
			if err != nil {
				return err
			}
			layout, err := follow.layout.layout(outs[0].file)
			if err != nil {
				return err
			}
			if err := refuseOthersFiles(outs, layout); err != nil {
				return err
			}
			needsCA := slices.ContainsFunc(outs, func(o lbOut) bool {
				part := lbKinds[o.kind].part
				return part == "" || part.Verifies(layout)
			})
			balancer, err := haproxy.haproxy()
			if err != nil {
				return err
			}
			var is lb.Nginx
			for _, o := range outs {
				if lbKinds[o.kind].part != "" && is == (lb.Nginx{}) {
					if is, err = nginx.nginx(cmd.Context(), cmd.ErrOrStderr()); err != nil {
						return err
					}
				}
			}
			kind := lbKinds[outs[len(outs)-1].kind]
			ready := make(chan struct{})
			return follow.follow(cmd, lb.Options{
				Layout: layout, NoCA: !needsCA, Logger: logger, State: outs[0].file + ".state", Ready: func() { close(ready) },
				Render: func(c lb.Cluster) ([]lb.File, error) { return renderOuts(outs, c, layout, is, balancer) },
				Install: lb.Commands{
					Check: lbCommand(check, kind.check), Reload: lbCommand(reload, kind.reload), Timeout: 30 * time.Second,
				},
			}, func(ctx context.Context, w *lb.Watcher) error {
				ended := supervise(ctx, w, ready, 10*time.Second)
				err := w.Run(ctx)
				ended(err)
				return err
			})
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&texts, "out", nil, "`[KIND=]FILE` to keep")
	flags.StringVar(&check, "check", "", "shell `COMMAND` that fails for a bad file, or none (default 'nginx -t' or 'haproxy -c')")
	flags.StringVar(&reload, "reload", "", "shell `COMMAND` that lets the balancer read its files again, or none (default 'systemctl reload' of nginx or haproxy)")
	follow.addFlags(flags)
	nginx.addFlags(flags)
	haproxy.addFlags(flags)
	return cmd
}

// refuseOthersFiles keeps root out of other users' folders. To become such a user
// is no way out, as it is for lb run: the reload wants root, and so does the
// balancer that reads the files.
func refuseOthersFiles(outs []lbOut, l lb.Layout) error {
	for _, o := range outs {
		if err := refuseOthers("--out", filepath.Dir(o.file)); err != nil {
			return err
		}
	}
	return refuseOthers("--ca", filepath.Dir(l.CA))
}

func renderOuts(outs []lbOut, c lb.Cluster, l lb.Layout, is lb.Nginx, haproxy lb.HAProxy) (files []lb.File, err error) {
	for _, o := range outs {
		var text []byte
		if part := lbKinds[o.kind].part; part != "" {
			text, err = lb.RenderNginx(c, l, is, part)
		} else {
			text, err = lb.RenderHAProxy(c, l, haproxy)
		}
		if err != nil {
			return nil, err
		}
		files = append(files, lb.File{Path: o.file, Text: text})
	}
	return files, nil
}

func newLBRunCommand() *cobra.Command {
	var (
		follow                   lbFollow
		dir, program, user, logs string
		stop                     time.Duration
	)
	cmd := &cobra.Command{
		Use:   "run --dir DIRECTORY",
		Short: "Run a balancer: an nginx of its own that follows the cluster",
		Long: `Starts nginx with everything that is its own in one directory, follows the cluster,
and reloads nginx when a node comes, goes, drains or dies. It stays in the
foreground, ends nginx when it ends, and ends when nginx does. It need not be root,
except for ports below 1024 (CAP_NET_BIND_SERVICE is enough).

It needs nginx and its stream module, on Debian the packages nginx and
libnginx-mod-stream; the system's own nginx need not run. When it starts again it
begins with the configuration that it had, also while no member answers.

Root who starts it on a directory of another user, such as that of the packaged
service, runs it as that user, who then has to be able to read --token-file and
--config.

SIGTERM or SIGINT ends it in order: no new connections, and --stop-timeout for the
sessions that there are.`,
		Example: `  chainmail lb run --dir /var/lib/chainmail-lb --peer 192.0.2.1:8025 --token-file /etc/chainmail/lb.token
  chainmail lb run --dir ./lb --smtp 127.0.0.1:2600 --http 127.0.0.1:2604 --source-address 127.0.0.2 --data-dir ./data/a`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := completeLB(cmd); err != nil {
				return err
			}
			if dir == "" {
				return usageError{errors.New("--dir is missing: name a directory for nginx's files")}
			}
			// Before anything in it is opened: root would leave files there that its owner
			// cannot write, and begin with a configuration that may be anybody's.
			place, err := nearest(dir)
			if err != nil {
				return err
			}
			if err := becomeOwner(cmd.ErrOrStderr(), place, os.Args[1:]); err != nil {
				return err
			}
			logger, err := follow.logger(cmd)
			if err != nil {
				return err
			}
			is, err := detectNginx(cmd.Context(), program)
			if err != nil {
				return err
			}
			if program, err = lb.FindProgram(program); err != nil {
				return err
			}
			ready := make(chan struct{})
			own, err := lb.NewOwn(lb.OwnOptions{
				Dir: dir, Program: program, Logger: logger, User: user, Stop: stop, Ready: func() { close(ready) },
			})
			if err != nil {
				return err
			}
			follow.layout.ca = own.CAFile()
			layout, err := follow.layout.layout("")
			if err != nil {
				return err
			}
			if !layout.Verifies() {
				layout.CA = ""
			}
			is.AccessLog = logs
			is = own.Configure(is)
			return follow.follow(cmd, lb.Options{
				Layout: layout, Logger: logger, State: own.StateFile(), Install: own,
				Render: func(c lb.Cluster) ([]lb.File, error) {
					text, err := lb.RenderNginx(c, layout, is, lb.Complete)
					return []lb.File{{Path: own.ConfigFile(), Text: text}}, err
				},
			}, func(ctx context.Context, w *lb.Watcher) error {
				ended := supervise(ctx, w, ready, stop+30*time.Second)
				err := lb.RunOwn(ctx, w, own)
				ended(err)
				return err
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&dir, "dir", "", "`DIRECTORY` for nginx's files")
	flags.StringVar(&program, "nginx", "nginx", "`PROGRAM` to run")
	follow.addFlags(flags)
	flags.DurationVar(&stop, "stop-timeout", 30*time.Second, "how long sessions may go on when it is asked to end")
	flags.StringVar(&logs, "access-log", "on", "on: a line a session and a request in logs/access.log; off: none")
	flags.StringVar(&user, "user", "", "`USER` of nginx's workers, when it is started as root (default www-data, nginx or nobody)")
	return cmd
}

func newLBCheckCommand() *cobra.Command {
	var (
		smtp    string
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "check",
		Short: "See whether the balancer on this machine takes connections",
		Long: `Connects to the balancer, and fails when it does not take the connection: what
keepalived asks every second. Whether a node is behind it is not asked: with no
node left, the address would only wander from one balancer to the other.`,
		Example: "  chainmail lb check --smtp 127.0.0.1:25",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conn, err := (&net.Dialer{Timeout: timeout}).DialContext(cmd.Context(), "tcp", smtp)
			if err != nil {
				return fmt.Errorf("the balancer does not take connections: %w", err)
			}
			return conn.Close()
		},
	}
	cmd.Flags().StringVar(&smtp, "smtp", "127.0.0.1:25", "`ADDRESS` of the balancer")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Second, "how long it may take")
	return cmd
}
