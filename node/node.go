// Package node is the composition root: it builds the parts of a node from a
// Config, starts them in one order and stops them in the reverse.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"chainmail/archive"
	"chainmail/archive/record"
	"chainmail/chain"
	"chainmail/chain/route"
	"chainmail/membership"
	"chainmail/membership/ring"
	"chainmail/node/api"
	"chainmail/node/httpd"
	"chainmail/node/smtpd"
)

// Options are what a node is given by its program rather than its operator.
type Options struct {
	Logger  *slog.Logger // nil: silent
	Version string       // of the program, for status and metrics
	// Ready is called once, when all listeners take connections and mail is
	// taken. Nil: nobody is told.
	Ready func()
	// Network and Disk replace the machine's in tests. Nil: the machine's.
	Network *Network
	Disk    *archive.Disk
}

// Node is one node of the archive.
type Node struct {
	config   Config
	options  Options
	log      *slog.Logger
	registry *prometheus.Registry
	started  time.Time
	state    atomic.Value // string, one of api.State…

	differ  atomic.Uint64             // stretches of which the last comparison found other contents on another node
	leaving atomic.Pointer[time.Time] // when the node saw that it is drained; nil: it is not
	sluice  sluice
	handed  bool         // others hold all that it held when it asked to be taken out; for live
	cut     []record.Log // what a joining node must hold to be active; nil: not known yet
	members *membership.Membership
	archive *archive.Archive // nil on a witness, like all that follows but http
	chain   *chain.Chain
	routes  []*route.Route
	smtp    *smtpd.Server
	http    *httpd.Server
}

// New checks the effective configuration (see Config.Complete) and starts
// nothing. Its error is a Problems when the configuration is at fault.
func New(c Config, o Options) (*Node, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	n := &Node{config: c, options: o, log: o.Logger.With("node", c.Name), registry: prometheus.NewRegistry()}
	n.state.Store(api.StateStarting)
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "chainmail_build_info",
		Help: "Always 1; the labels say which version runs under which node name.",
	}, []string{"version", "node"})
	build.WithLabelValues(o.Version, c.Name).Set(1)
	differ := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "chainmail_replicas_differ",
		Help: "Stretches of logs for which the last comparison with the other nodes found other contents: see chainmail verify --cluster.",
	}, func() float64 { return float64(n.differ.Load()) })
	n.registry.MustRegister(differ, build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return n, nil
}

// SocketPath is where the commands reach the node of a data directory.
func SocketPath(dataDir string) string { return filepath.Join(dataDir, adminSocket) }

// ArchiveDir is where a data directory keeps its mail.
func ArchiveDir(dataDir string) string { return filepath.Join(dataDir, "archive") }

// Run opens the archive and all listeners, and serves until ctx ends, a part
// fails, or the node has left its cluster. A node runs once.
//
// The parts depend on one another from the bottom up, so they start in this
// order and stop in the reverse:
//
//	readiness   first of all /readyz says no, so that balancers look elsewhere
//	place       nobody changes the node's place in the cluster while it stops
//	SMTP, LMTP  then clients get 421; mail in flight finishes and is committed
//	HTTP        stays until then, so that the drain can be watched
//	routes      note how far they are
//	chain       stays until then, because mail in flight waits for its copies
//	membership  tells the others that the node goes, not that it died
//	archive     closes when nobody can write or read any more
func (n *Node) Run(ctx context.Context) error {
	n.started = time.Now()
	if err := n.open(ctx); err != nil {
		return err
	}
	parts := []part{{"membership", n.members.Run}, {"HTTP", n.http.Run}, {"place in the cluster", n.live}, {"readiness", n.beReady}}
	if !n.witness() {
		parts = []part{{"archive", n.archive.Run}, {"membership", n.members.Run}, {"chain", n.chain.Run}}
		for _, r := range n.routes {
			parts = append(parts, part{"route", r.Run})
		}
		parts = append(parts, part{"HTTP", n.http.Run}, part{"SMTP", n.smtp.Run}, part{"place in the cluster", n.live},
			part{"comparison", n.compareForEver}, part{"readiness", n.beReady})
	}
	n.resumeLeaving()
	err := runStack(ctx, parts)
	if errors.Is(err, errLeft) {
		err = nil
	}
	if n.archive != nil {
		if errClose := n.archive.Close(); errClose != nil {
			err = errors.Join(err, fmt.Errorf("closing the archive: %w", errClose))
		}
	}
	return err
}

func (n *Node) witness() bool { return n.config.Role == RoleWitness }

// open builds every part and its listeners, so that a node with one bad address
// never takes a mail. What was opened is closed again when a later part fails.
func (n *Node) open(ctx context.Context) (err error) {
	var undo []func() error
	defer func() {
		for i := len(undo); err != nil && i > 0; i-- {
			err = errors.Join(err, undo[i-1]())
		}
	}()
	if err := os.MkdirAll(n.config.DataDir, 0o700); err != nil {
		return fmt.Errorf("data directory: %w: create it, or choose another with --data-dir", err)
	}
	if err := n.openMembership(); err != nil {
		return err
	}
	undo = append(undo, n.members.Close)
	if !n.witness() {
		if n.archive, err = archive.Open(n.archiveOptions()); err != nil {
			return err
		}
		undo = append(undo, n.archive.Close)
		if n.chain, err = chain.New(n.chainOptions()); err != nil {
			return err
		}
		if err := n.makeRoutes(); err != nil {
			return err
		}
	}

	httpOptions, err := n.httpOptions()
	if err != nil {
		return err
	}
	if n.http, err = httpd.New(httpOptions); err != nil {
		return err
	}
	if err := n.http.Listen(ctx); err != nil {
		return err
	}
	undo = append(undo, n.http.Close)
	if n.witness() {
		return nil
	}

	smtpOptions, err := n.smtpOptions()
	if err != nil {
		return err
	}
	if n.smtp, err = smtpd.New(smtpOptions); err != nil {
		return err
	}
	return n.smtp.Open()
}

// beReady is the uppermost part: while it runs, the node is ready.
func (n *Node) beReady(ctx context.Context) error {
	if !n.witness() {
		if err := n.settle(ctx); err != nil || ctx.Err() != nil {
			return err
		}
	}
	n.state.Store(api.StateActive)
	n.log.Info("ready", "version", n.options.Version, "cluster", n.members.Cluster(), "epoch", uint64(n.members.View().Epoch))
	if n.options.Ready != nil {
		n.options.Ready()
	}
	<-ctx.Done()
	n.state.Store(api.StateDraining)
	n.log.Info("draining: new mail is answered 421, mail in flight finishes")
	return nil
}

// accepting is nil while mail is taken, or says why it is not.
func (n *Node) accepting() error {
	if n.state.Load() == api.StateStarting {
		return smtpd.ErrStarting
	}
	if n.leaving.Load() != nil && n.graceLeft() <= 0 {
		return smtpd.ErrLeaving
	}
	return n.archive.Accepting()
}

// Status is what the node knows of itself; httpd adds the archive's figures.
func (n *Node) Status() api.Status {
	s := api.Status{
		Node:      n.config.Name,
		Version:   n.options.Version,
		StartedAt: n.started.UTC(),
		DataDir:   n.config.DataDir,
		Listeners: n.listeners(),
	}
	s.State, s.Reason = n.condition()
	if n.witness() {
		return s
	}
	for _, c := range n.archive.Quarantined() {
		if len(s.Conflicts) == maxConflicts {
			break
		}
		s.Conflicts = append(s.Conflicts, api.Conflict{
			Position: c.Position.String(), Held: c.Held.String(), Refused: c.Refused.String(), Peer: c.Peer, At: c.At, Kept: c.Kept.String(),
		})
	}
	return s
}

// maxConflicts is how many positions with two contents a status names.
const maxConflicts = 100

// Members counts the members of the node's cluster that keep mail.
func (n *Node) Members() int { return len(n.members.View().Ring()) }

// Advertised is where others reach the node's listeners, by the names of
// Addrs.
func (n *Node) Advertised() map[string]string {
	m, _ := n.members.View().Member(n.config.Name)
	return addresses(m.Addresses)
}

// condition is the node's state and, where it is not active, why.
func (n *Node) condition() (state, reason string) {
	state = n.state.Load().(string)
	if state != api.StateActive {
		return state, ""
	}
	switch m, ok := n.members.View().Member(n.config.Name); {
	case !ok:
		return api.StateDraining, "it is no member of its cluster any more"
	case m.State == ring.Draining:
		return api.StateDraining, "its copies move to other nodes; then it leaves the cluster"
	case m.State == ring.Joining:
		return api.StateJoining, "it takes mail, and is given the history"
	case n.witness():
		return state, ""
	}
	if full := n.archive.Accepting(); full != nil {
		return api.StateFull, full.Error()
	}
	return state, ""
}

// Addrs are the addresses that the node listens on, by the connectors' names
// and "chain", "gossip", "raft" and "http": known once the node is ready.
func (n *Node) Addrs() map[string]string {
	addrs := map[string]string{}
	addrs["gossip"], addrs["raft"] = n.members.Addrs()
	if n.smtp != nil {
		for _, l := range n.smtp.Listeners() {
			addrs[l.Name] = l.Address
		}
	}
	if a := n.http.Addr(); a != nil {
		addrs["http"] = a.String()
	}
	return addrs
}
