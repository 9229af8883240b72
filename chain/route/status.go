package route

import (
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chainmail/archive/record"
)

// State is what a route is doing.
type State string

// The states of a route.
const (
	StateSending  State = "sending"
	StateIdle     State = "idle"     // all is sent
	StateRetrying State = "retrying" // it waits before it tries again
	StateStopped  State = "stopped"  // it does not run, or waits for someone to look
)

// Status is the state of a route at one moment.
type Status struct {
	Name    string
	Target  string
	State   State
	Problem string    // empty when nothing is wrong
	Next    time.Time // of the next attempt, when it waits for a time; else zero

	Sent     uint64    // mails since New
	Bytes    uint64    // of them
	Backlog  uint64    // receipts that are neither sent nor parked
	Oldest   time.Time // when the oldest of them was received; zero: unknown, or none
	Deferred int       // of the backlog: waiting for another attempt
	// Unreadable ones of the deferred cannot be read from this node's archive.
	Unreadable int
	Parked     int
}

// Deferred is a mail that waits for another attempt.
type Deferred struct {
	Position record.Position
	Reason   string
	Attempts int
	Next     time.Time
}

// counts are since New.
type counts struct {
	sent, bytes                              uint64
	connection, deferred, unreadable, parked uint64
}

// Status tells the state of the route.
func (r *Route) Status() Status {
	logs := r.source.Logs()
	r.mu.Lock()
	defer r.mu.Unlock()
	s := Status{
		Name: r.opts.Name, Target: r.opts.Target,
		Sent: r.counts.sent, Bytes: r.counts.bytes,
		Backlog:  uint64(len(r.parked) - r.waiting),
		Oldest:   r.oldest(),
		Deferred: len(r.deferred.mails), Unreadable: r.deferred.unreadable,
		Parked: r.waiting,
	}
	for _, l := range r.wanted(logs) {
		left := l.Held
		if t := r.logs[l.Store]; t != nil {
			left = left.Minus(t.settled)
		}
		s.Backlog += left.Count()
	}
	r.describe(&s)
	return s
}

// describe says what the numbers mean.
func (r *Route) describe(s *Status) {
	switch {
	case !r.running:
		s.State = StateStopped
	case r.waiting >= maxParked:
		s.State = StateStopped
		s.Problem = fmt.Sprintf("%d mails are parked: see why, then retry them; the route goes on when there are fewer", r.waiting)
	case r.trouble.failures > 0 && s.Backlog > 0:
		s.State, s.Problem, s.Next = StateRetrying, r.trouble.problem, r.trouble.until
		if len(r.inFlight) > 0 {
			s.Next = time.Time{} // an attempt is under way
		}
	case len(r.deferred.mails) > 0:
		first := r.deferred.mails[0]
		s.State, s.Next = StateSending, first.due
		if len(r.inFlight) == 0 {
			s.State = StateRetrying
		}
		if first.reason != "" {
			s.Problem = fmt.Sprintf("%d mails are deferred, the next one, %v, because: %s", s.Deferred, first.at, first.reason)
		}
	case s.Backlog > 0:
		s.State = StateSending
	default:
		s.State = StateIdle
	}
}

// oldest is when the oldest mail that is not settled was received.
func (r *Route) oldest() (oldest time.Time) {
	see := func(receipt *record.Receipt) {
		if receipt != nil && (oldest.IsZero() || receipt.ReceivedAt.Before(oldest)) {
			oldest = receipt.ReceivedAt
		}
	}
	for _, t := range r.logs {
		if t.head != nil && !t.settled.Has(t.head.Position.Seq) {
			see(t.head)
		}
	}
	for m := range r.inFlight {
		see(m.receipt)
	}
	for _, m := range r.deferred.mails {
		see(m.receipt)
	}
	return oldest
}

// Deferred lists the mails that wait for another attempt, the next one first:
// up to limit, 0 means all.
func (r *Route) Deferred(limit int) []Deferred {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]Deferred, 0, len(r.deferred.mails))
	for _, m := range r.deferred.mails {
		all = append(all, Deferred{m.at, m.reason, m.attempts, m.due})
	}
	slices.SortFunc(all, func(a, b Deferred) int {
		if c := a.Next.Compare(b.Next); c != 0 {
			return c
		}
		return a.Position.Compare(b.Position)
	})
	if limit > 0 && len(all) > limit {
		all = all[:limit]
	}
	return all
}

// collector exports a route's status as metrics.
type collector struct {
	route                                                             *Route
	sent, bytes, failures, backlog, deferred, parked, trouble, oldest *prometheus.Desc
}

func newCollector(r *Route) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("chainmail_route_"+name, help, labels, prometheus.Labels{"route": r.opts.Name})
	}
	return &collector{
		route:    r,
		sent:     desc("sent_total", "Mails that the route's server has taken."),
		bytes:    desc("sent_bytes_total", "Bytes of the mails that the route's server has taken."),
		failures: desc("failures_total", "Attempts of a route that failed: connection trouble; deferred by the server; parked, refused for good; unreadable, the node cannot read the mail.", "kind"),
		backlog:  desc("backlog_receipts", "Receipts that are neither sent by the route nor parked."),
		deferred: desc("deferred_receipts", "Receipts of the backlog that wait for another attempt, by reason: the server's, or that the node cannot read them.", "reason"),
		parked:   desc("parked_receipts", "Receipts that the route's server refused for good, or too often. They are tried again only when asked for."),
		trouble:  desc("in_trouble", "1 while the route has no working connection to its server."),
		oldest:   desc("oldest_timestamp_seconds", "When the oldest receipt of the backlog was received, as Unix time; absent when none is known."),
	}
}

func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.sent, c.bytes, c.failures, c.backlog, c.deferred, c.parked, c.trouble, c.oldest} {
		out <- d
	}
}

func (c *collector) Collect(out chan<- prometheus.Metric) {
	s := c.route.Status()
	c.route.mu.Lock()
	n, inTrouble := c.route.counts, 0.0
	if c.route.trouble.failures > 0 {
		inTrouble = 1
	}
	c.route.mu.Unlock()
	send := func(d *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, kind, value, labels...)
	}
	send(c.sent, prometheus.CounterValue, float64(n.sent))
	send(c.bytes, prometheus.CounterValue, float64(n.bytes))
	send(c.failures, prometheus.CounterValue, float64(n.connection), "connection")
	send(c.failures, prometheus.CounterValue, float64(n.deferred), "deferred")
	send(c.failures, prometheus.CounterValue, float64(n.unreadable), "unreadable")
	send(c.failures, prometheus.CounterValue, float64(n.parked), "parked")
	send(c.backlog, prometheus.GaugeValue, float64(s.Backlog))
	send(c.deferred, prometheus.GaugeValue, float64(s.Deferred-s.Unreadable), "server")
	send(c.deferred, prometheus.GaugeValue, float64(s.Unreadable), "unreadable")
	send(c.parked, prometheus.GaugeValue, float64(s.Parked))
	send(c.trouble, prometheus.GaugeValue, inTrouble)
	if !s.Oldest.IsZero() {
		send(c.oldest, prometheus.GaugeValue, float64(s.Oldest.UnixNano())/1e9)
	}
}
