package lb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"chainmail/membership/ring"
	"chainmail/node/api"
)

// Asker asks one member of a cluster.
type Asker interface {
	// Cluster is the cluster as this member sees it.
	Cluster(ctx context.Context) (api.Cluster, error)
	// Ready is what it says at /readyz, also when that is no.
	Ready(ctx context.Context) (api.Health, error)
	// CA is the certificate of the cluster's CA, as PEM.
	CA(ctx context.Context) ([]byte, error)
	Close()
}

// Dialer makes an Asker for the HTTP port of a member; it does not connect.
type Dialer func(address string) (Asker, error)

// How long a member may take.
const (
	// hedgeTime is longer than a member itself waits for another one that is
	// frozen; then the next member is asked too.
	hedgeTime = 1500 * time.Millisecond
	// askTime bounds all attempts of a round together.
	askTime = 4 * time.Second
	// betterTime is how long a member's answer is held for a better one of another.
	betterTime = time.Second
	// probeTime is for "do you take mail?".
	probeTime = time.Second
)

// follower asks any member for the cluster, and every member how it is, which may
// be done at the same time. Learning belongs to one goroutine, when nobody asks.
type follower struct {
	dial    Dialer
	named   []string // peers that the operator gave
	learned []string // addresses of members
	current string   // whom it follows
	cluster string
	epoch   uint64 // the highest seen: who tells of an older one was asleep
	// behind is since when nobody tells of that epoch any more, and members with a
	// quorum tell of older ones; zero: somebody does.
	behind time.Time

	mu     sync.Mutex
	askers map[string]Asker
}

// answer is a member's word on its cluster.
type answer struct {
	from    string
	cluster api.Cluster
	err     error
}

func (f *follower) asker(address string) (Asker, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a, ok := f.askers[address]; ok {
		return a, nil
	}
	a, err := f.dial(address)
	if err == nil {
		f.askers[address] = a
	}
	return a, err
}

func (f *follower) close() {
	for _, a := range f.askers {
		a.Close()
	}
}

// peers are all addresses, first the one that answered last.
func (f *follower) peers() []string {
	all := slices.Concat([]string{f.current}, f.named, f.learned)
	var once []string
	for _, p := range all {
		if p != "" && !slices.Contains(once, p) {
			once = append(once, p)
		}
	}
	return once
}

// ask returns the best answer of any member. The one that answered last is asked
// first. When it fails, is slow or has no quorum (perhaps it is cut off), all
// others are asked beside it.
func (f *follower) ask(ctx context.Context) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	peers := f.peers()
	answers := make(chan answer, len(peers))
	begin := func(address string) {
		a, err := f.asker(address)
		if err != nil {
			answers <- answer{from: address, err: err}
			return
		}
		asking.Go(func() {
			c, err := a.Cluster(ctx)
			answers <- answer{address, c, err}
		})
	}
	if len(peers) == 0 {
		return answer{}, errors.New("no member is known: give one with --peer")
	}
	begin(peers[0])
	open, rest := 1, peers[1:]
	others := func() {
		for _, p := range rest {
			begin(p)
		}
		open, rest = open+len(rest), nil
	}
	hedge := time.NewTimer(hedgeTime)
	defer hedge.Stop()
	var best, older answer
	var failures []string
	for open > 0 {
		select {
		case a := <-answers:
			open--
			if err := f.check(a); err != nil {
				if errors.Is(err, errOlder) && a.cluster.Quorum && (older.from == "" || betterThan(a.cluster, older.cluster)) {
					older = a
				}
				failures = append(failures, fmt.Sprintf("%s: %v", a.from, err))
				others()
				continue
			}
			if a.cluster.Quorum {
				return a, nil
			}
			if best.from == "" {
				hedge.Reset(betterTime)
			}
			if best.from == "" || betterThan(a.cluster, best.cluster) {
				best = a
			}
			others()
		case <-hedge.C:
			if best.from != "" {
				return best, nil
			}
			others()
		case <-ctx.Done():
			open = 0
		}
	}
	if best.from != "" {
		return best, nil
	}
	if older.from != "" && f.believeOlder() {
		return older, nil
	}
	if len(failures) == 0 {
		failures = []string{"nobody answered within " + askTime.String()}
	}
	return answer{}, errors.New(strings.Join(failures, "; "))
}

// olderTime is how long an epoch is waited for that one member told of and no
// other knows: longer than any that knows it is away for a restart.
const olderTime = time.Minute

// believeOlder reports whether the newest epoch that anybody still tells of is to
// be believed: nobody has told of the highest one for long. Who did was in other
// hands, or the cluster was set back.
func (f *follower) believeOlder() bool {
	if f.behind.IsZero() {
		f.behind = time.Now()
	}
	return time.Since(f.behind) >= olderTime
}

// errOlder: the cluster was newer once.
var errOlder = errors.New("it knows the cluster as of an older epoch only")

// check refuses what is no answer, and what was true once.
func (f *follower) check(a answer) error {
	switch {
	case a.err != nil:
		return a.err
	case a.cluster.ID == "":
		return errors.New("its answer names no cluster")
	case f.cluster != "" && a.cluster.ID != f.cluster:
		return fmt.Errorf("it belongs to another cluster (%.40q) than before (%s)", a.cluster.ID, f.cluster)
	case a.cluster.Epoch < f.epoch:
		return fmt.Errorf("%w: %d, others as of %d", errOlder, a.cluster.Epoch, f.epoch)
	}
	return nil
}

// betterThan compares answers of members without a quorum: who sees more of the
// cluster is less likely to be the one that is cut off.
func betterThan(a, b api.Cluster) bool {
	if a.Epoch != b.Epoch {
		return a.Epoch > b.Epoch
	}
	return reachable(a) > reachable(b)
}

func reachable(c api.Cluster) (n int) {
	for _, m := range c.Members {
		if m.Self != nil {
			n++
		}
	}
	return n
}

// learn remembers whom to ask from now on; it reports whether that changed.
func (f *follower) learn(a answer, c Cluster) bool {
	var learned []string
	for _, n := range c.Nodes {
		learned = append(learned, n.HTTP.String())
	}
	for _, m := range a.cluster.Members {
		if m.Role == string(ring.Data) {
			continue // in c, where it is reached by the layout
		}
		if address, err := ParseAddress(m.Addresses["http"]); err == nil {
			learned = append(learned, address.String())
		}
	}
	slices.Sort(learned)
	learned = slices.Compact(learned)
	changed := !slices.Equal(learned, f.learned)
	f.behind = time.Time{}
	f.current, f.cluster, f.epoch, f.learned = a.from, a.cluster.ID, a.cluster.Epoch, learned
	for address, asker := range f.askers {
		if !slices.Contains(f.peers(), address) {
			asker.Close()
			delete(f.askers, address)
		}
	}
	return changed
}

// probe is what a node said when this balancer asked it itself.
type probe struct {
	state string
	err   error
	smtp  error // of its SMTP port; nil also when that was not asked
}

// probes asks all nodes at once.
func (f *follower) probes(ctx context.Context, nodes []Node) map[string]probe {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	var (
		mu  sync.Mutex
		all = map[string]probe{}
		wg  sync.WaitGroup
	)
	for _, n := range nodes {
		a, err := f.asker(n.HTTP.String())
		if err != nil {
			all[n.Name] = probe{err: err}
			continue
		}
		wg.Go(func() {
			h, err := a.Ready(ctx)
			mu.Lock()
			defer mu.Unlock()
			all[n.Name] = probe{state: h.State, err: err}
		})
	}
	wg.Wait()
	return all
}

// ca asks the members for the CA's certificate, one after the other.
func (f *follower) ca(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	var problems []error
	for _, p := range f.peers() {
		a, err := f.asker(p)
		if err == nil {
			one, done := context.WithTimeout(ctx, hedgeTime)
			var pem []byte
			pem, err = a.CA(one)
			done()
			if err == nil {
				return pem, nil
			}
		}
		problems = append(problems, fmt.Errorf("%s: %w", p, err))
	}
	return nil, errors.Join(problems...)
}

// judge puts together what a member says of the others and what they say
// themselves.
//
// A node that answers this balancer, but not the majority of the cluster, is cut
// off: its mail would have one copy until the network is mended. It gets none as
// long as others take mail. Without a quorum nobody knows who is cut off from
// whom, and whoever answers stays in.
//
// One that is well, but whose SMTP port this balancer does not reach, gets no mail
// either: clients would wait for that connection to fail.
func judge(told Cluster, quorum bool, probes map[string]probe) Cluster {
	c := Cluster{ID: told.ID, Nodes: slices.Clone(told.Nodes)}
	for i := range c.Nodes {
		n := &c.Nodes[i]
		p, asked := probes[n.Name]
		switch {
		case !asked: // just learned of
			continue
		case p.err != nil: // mail as the others see it: it has another address
			n.Web = Unreachable
			if n.Mail == In && p.smtp != nil {
				n.Mail = Unreachable
			}
			continue
		}
		n.Web = In
		switch {
		case n.Mail == Draining: // by decision
		case n.Mail == Unreachable && quorum && mailState(p.state) == In:
			n.Mail = CutOff
		default: // its own last word
			n.Mail = mailState(p.state)
		}
		if n.Mail == In && p.smtp != nil {
			n.Mail = NoSMTP
		}
	}
	return c
}

// silent is what a member told once, when no member tells anything any more.
func silent(told Cluster) Cluster {
	c := Cluster{ID: told.ID, Nodes: slices.Clone(told.Nodes)}
	for i := range c.Nodes {
		n := &c.Nodes[i]
		n.Web = Unreachable
		if n.Mail != Draining {
			n.Mail = Unreachable
		}
	}
	return c
}
