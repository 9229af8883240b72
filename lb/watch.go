package lb

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"chainmail/membership/ring"
)

// Options of a Watcher. Those without a word on it are needed.
type Options struct {
	Layout Layout
	// Render makes the files of a cluster; they name Layout.CA where they need it.
	Render func(Cluster) ([]File, error)
	// NoCA: none of the files names Layout.CA, so it is not written.
	NoCA bool
	// Peers are HTTP addresses of members, any of them.
	Peers   []string
	Dial    Dialer
	Install Installer
	// State is a file for what must be known after a restart: the members'
	// addresses, and what is in force.
	State  string
	Logger *slog.Logger

	// LocalAddr is the address of this machine from which a node is reached; nil:
	// whether the cluster trusts this balancer is not checked.
	LocalAddr func(Address) (netip.Addr, error)
	// Connect opens a connection to a node's SMTP port, the way the balancer will;
	// nil: whether it answers is not checked. It needs LocalAddr: a node that does not
	// trust this balancer would take what is said for bad SMTP.
	Connect func(context.Context, Address) (net.Conn, error)
	// Lookup finds the addresses of members that advertise names; nil: names stand
	// in the files.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	// Ready is called once, when a configuration is in force; may be nil.
	Ready func()
	// Poll is the time between two looks at the cluster; 0: a second.
	Poll time.Duration
	// Down and Up are for NewLiveness; 0: 3 and 2 seconds.
	Down, Up time.Duration
	// ReloadEvery is the time between two changes on the average; 0: 5 seconds. Two
	// may follow one another: what comes first should not keep the next from it.
	ReloadEvery time.Duration
	// Registry for metrics; may be nil.
	Registry prometheus.Registerer
}

// Times of a Watcher.
const (
	defaultPoll        = time.Second
	defaultDown        = 3 * time.Second
	defaultUp          = 2 * time.Second
	defaultReloadEvery = 5 * time.Second
	firstRetry         = 5 * time.Second // after a failed installation; then twice as long
	lastRetry          = time.Minute
	caEvery            = 10 * time.Minute // how often the CA's certificate is asked for
	remindEvery        = 10 * time.Minute // of what stays wrong
)

// Watcher keeps a balancer's configuration as the cluster is.
type Watcher struct {
	opts     Options
	follower follower
	greeter  greeter
	resolver resolver
	liveness *Liveness
	metrics  *metrics

	told      Cluster // as a member told last
	cluster   Cluster // as it should be balanced
	installed Cluster // as it is
	trust     bool    // the nodes trust this balancer, as far as is known
	ca        []byte
	caAsked   time.Time
	pair      string // digest of the certificate for clients and its key
	renewed   bool   // and they are other ones than at the last installation
	applied   string // digest of what is in force; empty: unknown
	pace      *rate.Limiter
	nobody    bool   // no node takes mail
	broken    error  // why what should be in force is not
	failed    string // digest of what could not be installed
	failure   error  // and why
	retry     time.Duration
	retryAt   time.Time
	ready     bool
	reminded  map[string]time.Time

	mu     sync.Mutex
	status Status
}

// Status is how a Watcher is.
type Status struct {
	Ready    bool      `json:"ready"`             // a configuration is in force
	Current  bool      `json:"current"`           // it is the one that should be
	Problem  string    `json:"problem,omitempty"` // what is wrong
	Follows  string    `json:"follows,omitempty"` // the member
	Cluster  string    `json:"cluster,omitempty"`
	Epoch    uint64    `json:"epoch"`
	SeenAt   time.Time `json:"seen_at,omitzero"`   // when a member last answered
	LookedAt time.Time `json:"looked_at,omitzero"` // when it last looked, with or without an answer
	Trusted  *bool     `json:"trusted"`            // the nodes believe what this balancer says of clients; null: unknown
	Mail     []string  `json:"mail"`               // nodes that get new SMTP connections
	Web      []string  `json:"web"`                // and HTTP
	Out      []NodeOut `json:"out"`                // those that get none, and why
	Reloads  uint64    `json:"reloads"`            // since the start
	Failures uint64    `json:"failures"`           // of installations, since the start

	all []string // every node
}

// NodeOut is a node that gets no new connections of a service.
type NodeOut struct {
	Node    string `json:"node"`
	Service string `json:"service"` // smtp or http
	Why     Out    `json:"why"`
}

// New checks the options. It starts nothing.
func New(o Options) (*Watcher, error) {
	if err := o.Layout.Validate(); err != nil {
		return nil, err
	}
	switch {
	case o.Render == nil || o.Dial == nil || o.Install == nil || o.Logger == nil || o.State == "":
		return nil, errors.New("lb: options are missing")
	case len(o.Peers) == 0:
		return nil, errors.New("no member to follow: give one with --peer")
	}
	for _, d := range []struct {
		at       *time.Duration
		standard time.Duration
	}{{&o.Poll, defaultPoll}, {&o.Down, defaultDown}, {&o.Up, defaultUp}, {&o.ReloadEvery, defaultReloadEvery}} {
		if *d.at == 0 {
			*d.at = d.standard
		}
		if *d.at < 0 {
			return nil, fmt.Errorf("a time of %v is not possible", *d.at)
		}
	}
	w := &Watcher{
		opts: o, liveness: NewLiveness(o.Down, o.Up), reminded: map[string]time.Time{},
		pace:     rate.NewLimiter(rate.Every(o.ReloadEvery), 2),
		follower: follower{dial: o.Dial, named: o.Peers, askers: map[string]Asker{}},
	}
	w.resolver.lookup, w.greeter.connect = o.Lookup, o.Connect
	w.status.Mail, w.status.Web, w.status.Out = []string{}, []string{}, []NodeOut{}
	w.metrics = newMetrics(w)
	return w, w.metrics.register(o.Registry)
}

// Run follows the cluster until ctx ends, which is no error.
func (w *Watcher) Run(ctx context.Context) error {
	defer w.follower.close()
	unlock, err := lockFile(w.opts.State + ".lock")
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("another 'chainmail lb' keeps the files beside %s: end that first", w.opts.State)
	}
	if err != nil {
		return fmt.Errorf("cannot write: %w: let this user write into %s, or name another place", err, filepath.Dir(w.opts.State))
	}
	defer unlock()
	w.remember()
	tick := time.NewTicker(w.opts.Poll)
	defer tick.Stop()
	for {
		w.round(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// round looks once and does what follows from it.
func (w *Watcher) round(ctx context.Context) {
	err := w.look(ctx)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		w.metrics.blind.Inc()
		if w.balances() {
			w.tell("follow", slog.LevelError, "the cluster cannot be followed, the balancer stays as it is", "err", err.Error())
		} else {
			w.tell("follow", slog.LevelError, "the cluster cannot be followed, and no configuration is in force yet: nothing is balanced until a member answers", "err", err.Error())
		}
		err = fmt.Errorf("the cluster cannot be followed: %w", err)
	} else {
		w.good("follow", "the cluster can be followed again")
	}
	if len(w.cluster.Nodes) > 0 { // else nothing is known yet: what is in force stays
		var files []File
		if files, w.broken = w.files(ctx); w.broken == nil {
			w.broken = w.install(ctx, files)
		}
	}
	w.note(func(s *Status) {
		s.LookedAt = time.Now().UTC()
		s.Problem = ""
		switch {
		case err != nil:
			s.Problem = err.Error()
		case w.broken != nil:
			s.Problem = w.broken.Error()
		case w.nobody:
			s.Problem = nobodyTakesMail
		}
		s.Current = s.Current && w.broken == nil
	})
}

// owns reports whether the balancer is this process's own.
func (w *Watcher) owns() bool {
	_, own := w.opts.Install.(*Own)
	return own
}

// balances reports whether a configuration was ever in force, also by an earlier
// run: before that there is nothing that stays as it is.
func (w *Watcher) balances() bool {
	if own, ok := w.opts.Install.(*Own); ok {
		return own.runs()
	}
	return w.ready || w.applied != ""
}

// look asks the cluster, and every node beside it.
func (w *Watcher) look(ctx context.Context) error {
	var (
		a      answer
		err    error
		asking sync.WaitGroup
		now    = time.Now() // what is seen was so now, however long the answers take
	)
	asking.Go(func() { a, err = w.follower.ask(ctx) })
	probes := w.probes(ctx)
	asking.Wait()
	if ctx.Err() != nil {
		return ctx.Err() // what was seen is nothing
	}
	if err != nil {
		if len(w.told.Nodes) > 0 { // the nodes' own words are left
			w.update(now, judge(silent(w.told), false, probes))
			w.tellSilence(probes)
		}
		return err
	}
	told, problems, err := Read(a.cluster, w.opts.Layout)
	told, unknown := w.resolver.resolve(ctx, told, w.opts.Layout)
	for _, p := range append(problems, unknown...) {
		w.tell(p, slog.LevelError, "the cluster's answer has a member that cannot be used", "follows", a.from, "err", p)
	}
	if err == nil && len(told.Nodes) == 0 {
		err = ErrNobody
	}
	if err != nil {
		return fmt.Errorf("%s: %w", a.from, err)
	}
	if w.follower.current != a.from {
		w.opts.Logger.Info("following the cluster", "follows", a.from, "cluster", told.ID, "epoch", a.cluster.Epoch)
	}
	if w.follower.learn(a, told) {
		w.save()
	}
	w.told = told
	w.update(now, judge(told, a.cluster.Quorum, probes))
	w.tellSilence(probes)
	trusted := w.trusted(a, told)
	if trusted != nil {
		w.trust = *trusted
	}
	w.note(func(s *Status) {
		s.Follows, s.Cluster, s.Epoch, s.SeenAt, s.Trusted = a.from, told.ID, a.cluster.Epoch, time.Now().UTC(), trusted
	})
	return nil
}

// probes asks all nodes themselves: whether they take mail, and whether it would
// get there.
func (w *Watcher) probes(ctx context.Context) map[string]probe {
	var asking sync.WaitGroup
	var failed map[string]error
	if w.trust && w.opts.Connect != nil && len(w.opts.Layout.SMTP) > 0 {
		asking.Go(func() { failed = w.greeter.ask(ctx, w.told.Nodes) })
	}
	probes := w.follower.probes(ctx, w.told.Nodes)
	asking.Wait()
	for name, err := range failed {
		p := probes[name]
		p.smtp = err
		probes[name] = p
	}
	return probes
}

const nobodyTakesMail = "no node takes mail, or none can be reached from here: the balancer passes it on as before, until one does"

// update debounces what is seen.
func (w *Watcher) update(now time.Time, seen Cluster) {
	if w.nobody = !slices.ContainsFunc(seen.Nodes, func(n Node) bool { return n.Mail == In }); w.nobody {
		w.tell("nobody", slog.LevelError, nobodyTakesMail)
	} else {
		w.good("nobody", "there are nodes that take mail again")
	}
	w.cluster = w.liveness.Update(now, seen)
	w.note(func(s *Status) {
		s.Mail, s.Web, s.Out, s.all = []string{}, []string{}, []NodeOut{}, nil // new ones: old ones may be read just now
		for _, n := range w.cluster.Nodes {
			s.all = append(s.all, n.Name)
			for i, in := range []*[]string{&s.Mail, &s.Web} {
				if why := *services[i].of(&n); why == In {
					*in = append(*in, n.Name)
				} else {
					s.Out = append(s.Out, NodeOut{n.Name, services[i].name, why})
				}
			}
		}
	})
}

// tellSilence says what is wrong with the SMTP ports of nodes that are out for
// that reason.
func (w *Watcher) tellSilence(probes map[string]probe) {
	for _, n := range w.cluster.Nodes {
		key := "smtp of " + n.Name
		if err := probes[n.Name].smtp; err != nil && n.Mail == NoSMTP {
			w.tell(key, slog.LevelWarn, "a node is well, but its SMTP port does not answer this balancer: see the network between them, and the node's firewall and SMTP listener",
				"node", n.Name, "address", n.SMTP.String(), "err", err.Error())
		} else if n.Mail == In {
			delete(w.reminded, key)
		}
	}
}

// trusted checks that the nodes expect PROXY headers from this balancer: from
// anybody else they would be bad SMTP.
func (w *Watcher) trusted(a answer, c Cluster) *bool {
	if w.opts.LocalAddr == nil {
		return nil
	}
	strangers, err := Strangers(c, a.cluster.Policies.Balancers, w.opts.Layout, w.opts.LocalAddr)
	if err != nil {
		return nil // no way to the nodes just now, which is told by others
	}
	trusted := len(strangers) == 0
	if trusted {
		w.good("trust", "the nodes know this balancer now")
	} else {
		w.tell("trust", slog.LevelError, "the nodes do not know this balancer and will refuse its connections",
			"address", join(strangers), "do", Introduce(a.cluster.Policies.Balancers, strangers))
	}
	return &trusted
}

// Strangers are the addresses of this balancer that the cluster's policy does not
// name.
func Strangers(c Cluster, balancers []string, l Layout, local func(Address) (netip.Addr, error)) ([]netip.Addr, error) {
	policy := ring.Policies{Balancers: balancers}
	var list []netip.Addr
	var reached []Address
	for _, n := range c.Nodes {
		if reached = append(reached, n.SMTP); l.Verifies() { // and tells of clients by X-Forwarded-For
			reached = append(reached, n.HTTP)
		}
	}
	for _, to := range reached {
		from, err := l.Source, error(nil)
		if !from.IsValid() {
			from, err = local(to)
		}
		if err != nil {
			return nil, err
		}
		if from = from.Unmap(); !policy.TrustsBalancer(from) && !slices.Contains(list, from) {
			list = append(list, from)
		}
	}
	return list, nil
}

// Introduce is the command that adds addresses to the policy.
func Introduce(balancers []string, strangers []netip.Addr) string {
	all := slices.Clone(balancers)
	for _, s := range strangers {
		all = append(all, s.String())
	}
	return "chainmail cluster set balancers=" + strings.Join(all, ",")
}

func join(list []netip.Addr) string {
	var texts []string
	for _, a := range list {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, ",")
}

// files renders what should be in force.
func (w *Watcher) files(ctx context.Context) ([]File, error) {
	files, err := w.opts.Render(w.cluster)
	if err != nil {
		if w.balances() {
			w.tell("render", slog.LevelError, "the configuration cannot be made, the one before stays", "err", err.Error())
		} else {
			w.tell("render", slog.LevelError, "the configuration cannot be made, and none is in force yet: nothing is balanced", "err", err.Error())
		}
		return nil, err
	}
	w.good("render", "the configuration can be made again")
	if w.opts.Layout.CA == "" || w.opts.NoCA {
		return files, nil
	}
	if now := time.Now(); w.ca == nil || now.Sub(w.caAsked) >= caEvery {
		pem, err := w.follower.ca(ctx)
		if err == nil {
			w.ca, w.caAsked = pem, now
		} else if w.ca == nil {
			if w.ca, _ = os.ReadFile(w.opts.Layout.CA); len(w.ca) == 0 { // of an earlier run
				w.ca = nil
				w.tell("ca", slog.LevelError, "no member gives the cluster's CA certificate, without which nodes cannot be verified", "err", err.Error())
				return nil, err
			}
		}
	}
	w.good("ca", "the cluster's CA certificate is here")
	return append(files, File{Path: w.opts.Layout.CA, Text: w.ca, Support: true}), nil
}

// certificates names what the certificate for clients and its key are now: a
// balancer reads them when it is reloaded, and people renew them. What cannot be
// read is for the balancer to tell about.
func (w *Watcher) certificates() string {
	h := sha256.New()
	for _, name := range []string{w.opts.Layout.HTTPCert, w.opts.Layout.HTTPKey} {
		if name == "" {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return w.pair
		}
		h.Write(text)
	}
	pair := hex.EncodeToString(h.Sum(nil))
	w.renewed = w.renewed || w.pair != "" && w.pair != pair
	w.pair = pair
	return pair
}

// digest names what files say, and the certificates that they name.
func digest(files []File, certificates string) string {
	h := sha256.New()
	fmt.Fprintln(h, certificates)
	for _, f := range files {
		fmt.Fprintf(h, "%s %d\n", f.Path, len(f.Text))
		h.Write(f.Text)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// install puts files in force, unless they are, or it is too early.
func (w *Watcher) install(ctx context.Context, files []File) error {
	want, now := digest(files, w.certificates()), time.Now()
	if want == w.applied && inPlace(files) {
		w.failed = ""
		w.inForce()
		return nil
	}
	switch {
	case want == w.failed && now.Before(w.retryAt):
		return w.failure
	case !w.pace.AllowN(now, 1):
		w.note(func(s *Status) { s.Current = false })
		return nil
	}
	why := w.reason(want)
	err := w.opts.Install.Install(ctx, files)
	switch {
	case ctx.Err() != nil:
		return ctx.Err() // it ends in the middle of an installation
	case err != nil:
		w.retry = min(max(firstRetry, 2*w.retry), lastRetry)
		if w.failed != want {
			w.retry = firstRetry
		}
		w.failed, w.failure, w.retryAt = want, err, time.Now().Add(w.retry)
		w.metrics.reloads.WithLabelValues("failed").Inc()
		w.note(func(s *Status) { s.Failures++ })
		if w.balances() || anyThere(files) && !w.owns() {
			w.opts.Logger.Error("the new configuration is not in force, the one before is", "why", why, "retry_in", w.retry.String(), "err", err.Error())
		} else {
			w.opts.Logger.Error("no configuration is in force yet: nothing is balanced", "why", why, "retry_in", w.retry.String(), "err", err.Error())
		}
		return err
	}
	w.opts.Logger.Info("the balancer has a new configuration", "why", why, "files", paths(files))
	w.applied, w.failed, w.retry = want, "", 0
	w.metrics.reloads.WithLabelValues("done").Inc()
	w.metrics.lastReload.SetToCurrentTime()
	w.save()
	w.note(func(s *Status) { s.Reloads++ })
	w.inForce()
	return nil
}

// reason tells why there is a new configuration: what is other than in the one
// in force, and not all that came and went in between.
func (w *Watcher) reason(want string) string {
	if want == w.applied {
		return "somebody else changed the files"
	}
	why := w.cluster.since(w.installed)
	if w.renewed {
		why = append(why, "the certificate for clients is another one")
	}
	if len(why) == 0 {
		return "it was another one"
	}
	return strings.Join(why, "; ")
}

func paths(files []File) string {
	var all []string
	for _, f := range files {
		all = append(all, f.Path)
	}
	return strings.Join(all, " ")
}

// inPlace reports whether the files are on disk as they should be.
func inPlace(files []File) bool {
	for _, f := range files {
		if text, err := os.ReadFile(f.Path); err != nil || !bytes.Equal(text, f.Text) {
			return false
		}
	}
	return true
}

// inForce is called when the configuration in force is the one that should be.
func (w *Watcher) inForce() {
	w.installed, w.renewed = w.cluster, false
	w.note(func(s *Status) { s.Ready, s.Current = true, true })
	if !w.ready {
		w.ready = true
		if w.opts.Ready != nil {
			w.opts.Ready()
		}
	}
}

// memory is what Options.State holds.
type memory struct {
	Peers   []string `json:"peers"`
	Applied string   `json:"applied"` // digest of the files in force
}

// remember reads what an earlier run knew. Without it everything works as at
// first, so a file that cannot be read is no error.
func (w *Watcher) remember() {
	text, err := os.ReadFile(w.opts.State)
	if err != nil {
		return
	}
	var m memory
	if err := json.Unmarshal(text, &m); err != nil {
		w.opts.Logger.Warn("what an earlier run remembered cannot be read, and is ignored", "file", w.opts.State, "err", err.Error())
		return
	}
	for _, p := range m.Peers {
		if a, err := ParseAddress(p); err == nil {
			w.follower.learned = append(w.follower.learned, a.String())
		}
	}
	w.applied = m.Applied
}

func (w *Watcher) save() {
	text, err := json.Marshal(memory{w.follower.learned, w.applied})
	if err == nil {
		err = writeFile(w.opts.State, append(text, '\n'))
	}
	if err != nil {
		w.tell("state", slog.LevelWarn, "the members' addresses cannot be remembered for the next start", "err", err.Error())
	}
}

// tell logs what is wrong: at once, and then from time to time as long as it is.
func (w *Watcher) tell(key string, level slog.Level, message string, args ...any) {
	if last, told := w.reminded[key]; told && time.Since(last) < remindEvery {
		return
	}
	w.reminded[key] = time.Now()
	w.opts.Logger.Log(context.Background(), level, message, args...) //nolint:sloglint // each caller's message is a constant
}

// good ends a problem.
func (w *Watcher) good(key, message string) {
	if _, told := w.reminded[key]; told {
		delete(w.reminded, key)
		w.opts.Logger.Info(message) //nolint:sloglint // each caller's message is a constant
	}
}

func (w *Watcher) note(change func(*Status)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(&w.status)
}

// Status tells how it is. It may be called from any goroutine.
func (w *Watcher) Status() Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.status
	s.Mail, s.Web, s.Out = slices.Clone(s.Mail), slices.Clone(s.Web), slices.Clone(s.Out)
	return s
}
