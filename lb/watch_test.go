package lb_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chainmail/lb"
	"chainmail/node/api"
)

// world is a cluster as a balancer meets it.
type world struct {
	mu     sync.Mutex
	answer api.Cluster
	// views are what a member tells instead; nodes what each is to the balancer:
	// "" well, a state, "dead" or "frozen".
	views map[string]api.Cluster
	nodes map[string]string
	asked map[string]int // for the cluster
	ca    []byte
	dns   map[string]string
	also  map[string]string // further addresses, of whom
	// smtp is how the SMTP ports of nodes are: "" well, "cut" (packets vanish),
	// "refused", "mute", or a greeting; visits how often they were asked.
	smtp   map[string]string
	visits map[string]int
}

func newWorld(answer api.Cluster) *world {
	return &world{answer: answer, views: map[string]api.Cluster{}, nodes: map[string]string{}, asked: map[string]int{}, ca: []byte("CA\n"), smtp: map[string]string{}, visits: map[string]int{}}
}

// lookup is a DNS.
func (w *world) lookup(_ context.Context, host string) ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []netip.Addr
	for _, ip := range strings.Fields(w.dns[host]) {
		all = append(all, netip.MustParseAddr(ip))
	}
	if len(all) == 0 {
		return nil, errors.New("no such host")
	}
	return all, nil
}

func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// asker is one member.
type asker struct {
	w       *world
	address string
}

func (w *world) dial(address string) (lb.Asker, error) { return asker{w, address}, nil }

// node is who has the address.
func (a asker) node() (string, string) {
	a.w.mu.Lock()
	defer a.w.mu.Unlock()
	for _, m := range a.w.answer.Members {
		if m.Addresses["http"] == a.address || a.w.also[a.address] == m.Name {
			return m.Name, a.w.nodes[m.Name]
		}
	}
	return "", "dead"
}

func (a asker) reach(ctx context.Context) (name, state string, err error) {
	name, state = a.node()
	switch state {
	case "dead":
		return name, state, errors.New("connection refused")
	case "frozen":
		<-ctx.Done()
		return name, state, ctx.Err()
	}
	return name, state, nil
}

func (a asker) Cluster(ctx context.Context) (api.Cluster, error) {
	name, _, err := a.reach(ctx)
	a.w.mu.Lock()
	defer a.w.mu.Unlock()
	a.w.asked[name]++
	if err != nil {
		return api.Cluster{}, err
	}
	if v, ok := a.w.views[name]; ok {
		return v, nil
	}
	c := a.w.answer
	c.Members = append([]api.Member(nil), c.Members...)
	for i := range c.Members {
		if s := a.w.nodes[c.Members[i].Name]; s == "dead" || s == "frozen" {
			c.Members[i].State, c.Members[i].Self = api.StateUnreachable, nil
		}
	}
	return c, nil
}

func (a asker) Ready(ctx context.Context) (api.Health, error) {
	_, state, err := a.reach(ctx)
	if state == "" {
		state = api.StateActive
	}
	return api.Health{State: state}, err
}

func (a asker) CA(ctx context.Context) ([]byte, error) {
	_, _, err := a.reach(ctx)
	return a.w.ca, err
}

func (asker) Close() {}

// installer keeps files in memory and on disk, and may refuse.
type installer struct {
	mu      sync.Mutex
	fail    error
	at      []time.Time
	texts   []string
	refused int
}

func (i *installer) Install(_ context.Context, files []lb.File) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.fail != nil {
		i.refused++
		return i.fail
	}
	for _, f := range files {
		if err := os.WriteFile(f.Path, f.Text, 0o600); err != nil {
			return err
		}
	}
	i.at, i.texts = append(i.at, time.Now()), append(i.texts, string(files[0].Text))
	return nil
}

func (i *installer) last() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.texts) == 0 {
		return ""
	}
	return i.texts[len(i.texts)-1]
}

func (i *installer) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.at)
}

// bench is a Watcher that runs in a bubble.
type bench struct {
	*world
	*installer
	w        *lb.Watcher
	log      *syncBuffer
	registry *prometheus.Registry
	stop     func()
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// short renders who is in, a line a service: what tests look at.
func short(file string) func(lb.Cluster) ([]lb.File, error) {
	return func(c lb.Cluster) ([]lb.File, error) {
		var mail, web []string
		for _, n := range c.Nodes {
			if n.Mail == lb.In {
				mail = append(mail, n.Name)
				if n.Name == "c" && n.SMTP.String() != "192.0.2.3:25" { // where members has it
					mail = append(mail, " moved to "+n.SMTP.Host())
				}
			}
			if n.Web == lb.In {
				web = append(web, n.Name)
			}
		}
		return []lb.File{{Path: file, Text: fmt.Appendf(nil, "mail %s, web %s", strings.Join(mail, ""), strings.Join(web, ""))}}, nil
	}
}

func start(t *testing.T, world *world, dir string, peers ...string) *bench {
	t.Helper()
	return startWith(t, world, dir, standard(), peers...)
}

func startWith(t *testing.T, world *world, dir string, layout lb.Layout, peers ...string) *bench {
	t.Helper()
	b := &bench{world: world, installer: &installer{}, log: &syncBuffer{}, registry: prometheus.NewRegistry()}
	file := filepath.Join(dir, "out")
	var err error
	layout.CA = file + ".ca.pem"
	b.w, err = lb.New(lb.Options{
		Layout: layout, Render: short(file), Peers: peers, Dial: world.dial, Install: b.installer,
		State: file + ".state", Logger: slog.New(slog.NewTextHandler(b.log, nil)), Registry: b.registry,
		Lookup:    world.lookup,
		Connect:   world.connect,
		LocalAddr: func(lb.Address) (netip.Addr, error) { return netip.MustParseAddr("192.0.2.10"), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.w.Run(ctx) }()
	b.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	return b
}

// expect waits in virtual time and compares what is in force.
func (b *bench) expect(t *testing.T, after time.Duration, want string) {
	t.Helper()
	time.Sleep(after)
	synctest.Wait()
	if got := b.last(); got != want {
		t.Fatalf("%q is in force, want %q\n%s", got, want, b.log)
	}
}

const aHTTP = "192.0.2.1:8025"

func TestWatchFollowsTheDeathOfWhomItFollows(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, newWorld(members(3)), dir, aHTTP)
		defer b.stop()
		b.expect(t, 0, "mail abc, web abc")
		b.world.change(func() { b.nodes["a"] = "dead" })
		b.expect(t, 2*time.Second, "mail abc, web abc")
		b.expect(t, 8*time.Second, "mail bc, web bc")
		b.world.change(func() { b.nodes["a"] = "" })
		b.expect(t, 10*time.Second, "mail abc, web abc")
		if b.count() != 3 {
			t.Errorf("%d installations, want 3", b.count())
		}
	})
}

func TestWatchIsNotHeldUpByAFrozenNode(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, newWorld(members(3)), dir, aHTTP)
		defer b.stop()
		b.expect(t, 0, "mail abc, web abc")
		time.Sleep(10 * time.Second)
		b.world.change(func() { b.nodes["a"] = "frozen" })
		b.expect(t, 6*time.Second, "mail bc, web bc")
		if s := b.w.Status(); s.Follows == aHTTP || time.Since(s.SeenAt) > 3*time.Second || !s.Current {
			t.Errorf("%+v", s)
		}
	})
}

// TestWatchRestartsWithADeadPeer: the named peer is dead when it starts again; it
// knows the others, and reloads nothing.
func TestWatchRestartsWithADeadPeer(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		world := newWorld(members(3))
		b := start(t, world, dir, aHTTP)
		b.expect(t, 0, "mail abc, web abc")
		world.change(func() { world.nodes["a"] = "dead" })
		b.expect(t, time.Minute, "mail bc, web bc")
		b.stop()
		again := start(t, world, dir, aHTTP)
		defer again.stop()
		again.expect(t, time.Minute, "")
		if s := again.w.Status(); !s.Ready || !s.Current || s.Reloads != 0 {
			t.Errorf("%+v\n%s", s, again.log)
		}
	})
}

func TestWatchDrainsAtOnceAndKeepsTheConsole(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, newWorld(members(3)), dir, aHTTP)
		defer b.stop()
		b.expect(t, 10*time.Second, "mail abc, web abc")
		b.world.change(func() { b.nodes["b"] = api.StateDraining })
		b.expect(t, 1500*time.Millisecond, "mail ac, web abc")
		b.world.change(func() { b.nodes["b"], b.nodes["c"] = "", api.StateFull })
		b.expect(t, 10*time.Second, "mail ab, web abc")
	})
}

// TestWatchNeverEmpties: with nobody left, the last ones stay.
func TestWatchNeverEmpties(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, newWorld(members(2)), dir, aHTTP)
		defer b.stop()
		b.expect(t, 0, "mail ab, web ab")
		b.world.change(func() { b.nodes["a"] = "dead" })
		b.expect(t, 20*time.Second, "mail b, web b")
		b.world.change(func() { b.nodes["b"] = "dead" })
		b.expect(t, 5*time.Minute, "mail b, web b")
		if s := b.w.Status(); s.Problem == "" {
			t.Error("nobody answers, and that is no problem")
		}
		b.world.change(func() { b.nodes["a"] = "" })
		b.expect(t, 10*time.Second, "mail a, web a")
	})
}

// TestWatchKeepsWhoTakesMailWhileNobodyTells: a revoked token is no outage.
func TestWatchKeepsWhoTakesMailWhileNobodyTells(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, newWorld(members(3)), dir, aHTTP)
		defer b.stop()
		b.expect(t, 10*time.Second, "mail abc, web abc")
		b.world.change(func() {
			for _, n := range []string{"a", "b", "c", "w"} {
				b.views[n] = api.Cluster{ID: "another"}
			}
		})
		b.expect(t, time.Minute, "mail abc, web abc")
		b.world.change(func() { b.nodes["c"] = api.StateFull })
		b.expect(t, 10*time.Second, "mail ab, web abc")
		if s := b.w.Status(); !strings.Contains(s.Problem, "another") || !s.Ready {
			t.Errorf("%+v", s)
		}
	})
}

// TestWatchThatNeverBalancedSaysSo: at a first start nothing stays as it is, since
// there is nothing.
func TestWatchThatNeverBalancedSaysSo(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(members(3))
		dead := map[string]string{"a": "dead", "b": "dead", "c": "dead", "w": "dead"}
		w.nodes = dead
		b := start(t, w, dir, aHTTP)
		b.expect(t, 3*time.Second, "")
		refuse := func(err error) {
			b.installer.mu.Lock()
			defer b.installer.mu.Unlock()
			b.installer.fail = err
		}
		refuse(errors.New("no"))
		w.change(func() { w.nodes = map[string]string{} })
		b.expect(t, 20*time.Second, "")
		said := b.log.String()
		for _, want := range []string{
			"the cluster cannot be followed, and no configuration is in force yet: nothing is balanced until a member answers",
			`"no configuration is in force yet: nothing is balanced"`,
		} {
			if !strings.Contains(said, want) {
				t.Errorf("%q is not in\n%s", want, said)
			}
		}
		if strings.Contains(said, "before") || strings.Contains(said, "stays") {
			t.Error("of a first start:", said)
		}
		refuse(nil)
		b.expect(t, 2*time.Minute, "mail abc, web abc")
		b.stop()

		w.nodes = dead // and from now on there is one
		b = start(t, w, dir, aHTTP)
		defer b.stop()
		b.expect(t, 3*time.Second, "")
		refuse(errors.New("no"))
		w.change(func() { w.nodes = map[string]string{"a": api.StateFull} })
		b.expect(t, 20*time.Second, "")
		said = b.log.String()
		if !strings.Contains(said, "the balancer stays as it is") || !strings.Contains(said, "the one before is") || strings.Contains(said, "no configuration is in force yet") {
			t.Error("of a later start:", said)
		}
	})
}

// TestWatchWritesNoCAThatNobodyReads: a stream block names none, though the layout
// has HTTP for another file's sake.
func TestWatchWritesNoCAThatNobodyReads(t *testing.T) {
	for _, none := range []bool{true, false} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			file, layout := filepath.Join(dir, "out"), standard()
			layout.CA = file + ".ca.pem"
			w, err := lb.New(lb.Options{
				Layout: layout, NoCA: none, Render: short(file), Peers: []string{aHTTP}, Dial: newWorld(members(3)).dial, Install: &installer{},
				State: file + ".state", Logger: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := w.Run(ctx); err != nil {
				t.Fatal(err)
			}
			_, err = os.Stat(layout.CA)
			if s := w.Status(); !s.Current || errors.Is(err, fs.ErrNotExist) != none {
				t.Errorf("without a CA %v: %v, %+v", none, err, s)
			}
		})
	}
}

// cutOff is how the cluster looks from name when it sees only those.
func cutOff(answer api.Cluster, quorum bool, sees string) api.Cluster {
	answer.Quorum = quorum
	answer.Members = append([]api.Member(nil), answer.Members...)
	for i, m := range answer.Members {
		if !strings.Contains(sees, m.Name) {
			answer.Members[i].State, answer.Members[i].Self = api.StateUnreachable, nil
		}
	}
	return answer
}

// TestWatchLeavesTheMinorityOfAPartition: the nodes' own network is cut, the
// balancer reaches all of them, and follows the one that is alone.
func TestWatchLeavesTheMinorityOfAPartition(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		all := members(3)
		b := start(t, newWorld(all), dir, aHTTP)
		defer b.stop()
		b.expect(t, 10*time.Second, "mail abc, web abc")
		b.world.change(func() {
			b.views["a"] = cutOff(all, false, "a")
			b.views["b"], b.views["c"] = cutOff(all, true, "bcw"), cutOff(all, true, "bcw")
			b.views["w"] = b.views["b"]
		})
		b.expect(t, 10*time.Second, "mail bc, web abc")
		b.world.change(func() { clear(b.views) })
		b.expect(t, 10*time.Second, "mail abc, web abc")
	})
}

// TestWatchKeepsBothOfTwo: two nodes that do not see one another have no quorum,
// and both take mail.
func TestWatchKeepsBothOfTwo(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		all := members(2)
		b := start(t, newWorld(all), dir, aHTTP)
		defer b.stop()
		b.expect(t, 0, "mail ab, web ab")
		b.world.change(func() {
			b.views["a"], b.views["b"] = cutOff(all, false, "a"), cutOff(all, false, "b")
			b.nodes["w"] = "dead"
		})
		b.expect(t, time.Minute, "mail ab, web ab")
	})
}

// TestWatchBelievesNoOldEpoch: a member that slept tells of a member that left.
func TestWatchBelievesNoOldEpoch(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		world := newWorld(members(3))
		world.answer.Members = world.answer.Members[1:] // c left
		old := members(3)
		old.Epoch--
		b := start(t, world, dir, "192.0.2.2:8025")
		defer b.stop()
		b.expect(t, 10*time.Second, "mail ab, web ab")
		b.world.change(func() { b.views["a"] = old; b.nodes["b"] = "frozen"; b.nodes["w"] = "dead" })
		b.expect(t, 2*time.Second, "mail ab, web ab")
		b.expect(t, 20*time.Second, "mail a, web a")
	})
}

func TestWatchReloadsAreRareAndOnlyForChanges(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, newWorld(members(3)), dir, aHTTP)
		defer b.stop()
		b.expect(t, time.Hour, "mail abc, web abc")
		if b.count() != 1 {
			t.Fatalf("%d installations of the same", b.count())
		}
		for i := range 60 { // a node that is full every other three seconds
			b.world.change(func() { b.nodes["c"] = []string{api.StateFull, ""}[i%2] })
			time.Sleep(3 * time.Second)
		}
		b.installer.mu.Lock()
		defer b.installer.mu.Unlock()
		for i := 2; i < len(b.at); i++ { // two may follow one another
			if gap := b.at[i].Sub(b.at[i-2]); gap < 5*time.Second {
				t.Errorf("%v between three reloads", gap)
			}
		}
		if len(b.at) < 20 || len(b.at) > 40 {
			t.Errorf("%d reloads in three minutes", len(b.at))
		}
	})
}

func TestWatchTriesAgainAfterARefusal(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, newWorld(members(3)), dir, aHTTP)
		defer b.stop()
		b.expect(t, 10*time.Second, "mail abc, web abc")
		fail := func(err error) {
			b.installer.mu.Lock()
			defer b.installer.mu.Unlock()
			b.fail = err
		}
		fail(errors.New("no such directive"))
		b.world.change(func() { b.nodes["c"] = api.StateFull })
		b.expect(t, 10*time.Minute, "mail abc, web abc")
		b.installer.mu.Lock()
		if b.refused < 8 || b.refused > 20 { // 5, 10, 20, 40, 60, 60 … seconds
			t.Errorf("%d attempts in ten minutes", b.refused)
		}
		b.installer.mu.Unlock()
		if s := b.w.Status(); s.Current || !strings.Contains(s.Problem, "no such directive") {
			t.Errorf("%+v", s)
		}
		fail(nil)
		b.expect(t, time.Minute+time.Second, "mail ab, web abc")
		if s := b.w.Status(); !s.Current || s.Problem != "" {
			t.Errorf("%+v", s)
		}
		if got := strings.Count(b.log.String(), "level=ERROR"); got > 25 {
			t.Errorf("%d errors logged", got)
		}
	})
}

func TestWatchMendsFilesThatSomebodyChanged(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, newWorld(members(3)), dir, aHTTP)
		defer b.stop()
		b.expect(t, 10*time.Second, "mail abc, web abc")
		file := filepath.Join(dir, "out")
		if err := os.WriteFile(file, []byte("by hand"), 0o600); err != nil {
			t.Fatal(err)
		}
		b.expect(t, 10*time.Second, "mail abc, web abc")
		if text, _ := os.ReadFile(file); string(text) != "mail abc, web abc" || !strings.Contains(b.log.String(), "somebody else") {
			t.Errorf("%s\n%s", text, b.log)
		}
	})
}

func TestWatchTellsHowToIntroduceIt(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, newWorld(members(3)), dir, aHTTP)
		defer b.stop()
		b.expect(t, 5*time.Minute, "mail abc, web abc")
		if got := strings.Count(b.log.String(), `do="chainmail cluster set balancers=192.0.2.10"`); got != 1 {
			t.Errorf("told %d times in 5 minutes\n%s", got, b.log)
		}
		b.world.change(func() { b.answer.Policies.Balancers = []string{"192.0.2.10"} })
		b.expect(t, 5*time.Second, "mail abc, web abc")
		if s := b.w.Status(); s.Trusted == nil || !*s.Trusted || !strings.Contains(b.log.String(), "know this balancer now") {
			t.Errorf("%+v\n%s", s, b.log)
		}
	})
}

func TestWatchWaitsForAFirstAnswer(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		world := newWorld(members(3))
		world.nodes = map[string]string{"a": "dead", "b": "dead", "c": "dead", "w": "dead"}
		b := start(t, world, dir, aHTTP, "192.0.2.2:8025")
		defer b.stop()
		b.expect(t, time.Minute, "")
		health := func() int {
			r := httptest.NewRecorder()
			b.w.Handler(b.registry).ServeHTTP(r, httptest.NewRequest(http.MethodGet, "/healthz", nil))
			return r.Code
		}
		if health() != 503 {
			t.Error("healthy without a configuration")
		}
		b.world.change(func() { delete(b.nodes, "b") })
		b.expect(t, 5*time.Second, "mail b, web b")
		if health() != 200 {
			t.Error("not healthy")
		}
		r := httptest.NewRecorder()
		b.w.Handler(b.registry).ServeHTTP(r, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		for _, want := range []string{
			`chainmail_lb_node_in{node="b",service="smtp"} 1`, `chainmail_lb_node_in{node="a",service="smtp"} 0`,
			`chainmail_lb_config_current 1`, `chainmail_lb_trusted 0`, `chainmail_lb_epoch 7`, `chainmail_lb_reloads_total{result="done"} 1`,
		} {
			if !strings.Contains(r.Body.String(), want) {
				t.Errorf("metrics lack %s", want)
			}
		}
	})
}

// TestWatchGetsTheCA: the file is there before the first installation; later ones
// need nobody for it.
func TestWatchGetsTheCA(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, newWorld(members(3)), dir, aHTTP)
		defer b.stop()
		b.expect(t, 0, "mail abc, web abc")
		if text, err := os.ReadFile(filepath.Join(dir, "out.ca.pem")); string(text) != "CA\n" {
			t.Errorf("%q %v", text, err)
		}
		b.world.change(func() { b.ca = []byte("another CA\n") })
		b.expect(t, 11*time.Minute, "mail abc, web abc")
		if text, _ := os.ReadFile(filepath.Join(dir, "out.ca.pem")); string(text) != "another CA\n" {
			t.Errorf("%q", text)
		}
	})
}

// TestWatchFollowsNames: a node that advertises a name moves with it, and stays
// where it was while the DNS knows nothing.
func TestWatchFollowsNames(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		world := newWorld(members(3, func(by map[string]*api.Member) {
			by["b"].Addresses["smtp"], by["c"].Addresses["smtp"] = "mail-b.example:25", "mail-c.example:25"
		}))
		world.dns = map[string]string{"mail-b.example": "192.0.2.2"}
		b := start(t, world, dir, aHTTP)
		defer b.stop()
		b.expect(t, 10*time.Second, "mail ab, web ab")
		if !strings.Contains(b.log.String(), "no address is known for its name mail-c.example") {
			t.Error(b.log)
		}
		b.world.change(func() { b.dns["mail-c.example"] = "192.0.2.3"; b.dns["mail-b.example"] = "192.0.2.22" })
		b.expect(t, 20*time.Second, "mail abc, web abc")
		if !strings.Contains(b.log.String(), "b moved to SMTP 192.0.2.22:25") {
			t.Error(b.log)
		}
		b.world.change(func() { b.dns["mail-c.example"] = "2001:db8::1 192.0.2.2 192.0.2.3" }) // one more is no move
		b.expect(t, time.Minute, "mail abc, web abc")
		b.world.change(func() { clear(b.dns) })
	})
}

// TestWatchReloadsForARenewedCertificate: certbot writes it, nobody else tells.
func TestWatchReloadsForARenewedCertificate(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "console.pem")
	renew := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	renew("old")
	synctest.Test(t, func(t *testing.T) {
		b := startWith(t, newWorld(members(3)), dir, standard(func(l *lb.Layout) { l.HTTPCert = file }), aHTTP)
		defer b.stop()
		b.expect(t, time.Minute, "mail abc, web abc")
		renew("new")
		b.expect(t, time.Minute, "mail abc, web abc")
		if b.count() != 2 || !strings.Contains(b.log.String(), "the certificate for clients is another one") {
			t.Errorf("%d installations\n%s", b.count(), b.log)
		}
		b.world.change(func() { b.nodes["c"] = api.StateFull })
		b.expect(t, 10*time.Second, "mail ab, web abc")
		if got := strings.Count(b.log.String(), "the certificate for clients is another one"); got != 1 {
			t.Errorf("told %d times", got)
		}
		b.world.change(func() { b.nodes["c"] = "" })
		b.expect(t, 10*time.Second, "mail abc, web abc")
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		b.expect(t, time.Minute, "mail abc, web abc")
		if b.count() != 4 {
			t.Errorf("%d installations after it is gone", b.count())
		}
	})
}
