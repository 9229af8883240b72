package chain

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the chain's figures for Prometheus.
type metrics struct {
	sentReceipts, sentBytes        *prometheus.CounterVec // by peer and lane
	refusals, linkBreaks, received *prometheus.CounterVec // by peer
	roundTrip                      *prometheus.HistogramVec
	copiesWait                     prometheus.Histogram
	now                            *nowMetrics
	everything                     []prometheus.Collector
}

// nowMetrics are read from the chain's status when they are asked for.
type nowMetrics struct {
	c *Chain

	linkUp, backlog, backlogBytes, lost, skew *prometheus.Desc
	shortNow, shortEver, waiting              *prometheus.Desc
}

func newMetrics(c *Chain) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "chainmail", Subsystem: "chain", Name: name, Help: help}, labels)
	}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName("chainmail", "chain", name), help, labels, nil)
	}
	m := &metrics{
		sentReceipts: counter("sent_receipts_total", "Receipts that a peer confirmed to have on disk, by lane: live is new mail, bulk is history and large mail.", "peer", "lane"),
		sentBytes:    counter("sent_bytes_total", "Bytes of the containers of those receipts.", "peer", "lane"),
		received:     counter("received_receipts_total", "Receipts that came in containers of a peer and are on disk, also those held before.", "peer"),
		refusals:     counter("refusals_total", "Containers that a peer refused.", "peer"),
		linkBreaks:   counter("link_breaks_total", "Times that the link to a peer ended.", "peer"),
		roundTrip: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "chainmail", Subsystem: "chain", Name: "round_trip_seconds",
			Help:    "Time from sending a container of new mail to the peer's word that it is on disk.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 18), // 0.1 ms … 13 s
		}, []string{"peer"}),
		copiesWait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "chainmail", Subsystem: "chain", Name: "copies_wait_seconds",
			Help:    "Time that a mail, on disk here, waited for its other copies before its 250.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 18),
		}),
		now: &nowMetrics{
			c:            c,
			linkUp:       desc("link_up", "1 while receipts can go to the peer, 0 while it is unreachable or refuses.", "peer"),
			backlog:      desc("backlog_receipts", "Receipts of a log that the peer should hold and does not. Absent while that is unknown.", "peer", "log", "origin"),
			backlogBytes: desc("backlog_bytes", "Bytes of those receipts. Absent while that is unknown.", "peer", "log", "origin"),
			lost:         desc("lost_receipts", "Receipts that the member (a peer or this node) should hold and no reachable member does. Anything but 0 for long needs an administrator.", "member"),
			skew:         desc("clock_skew_seconds", "The peer's clock minus this node's.", "peer"),
			shortNow:     desc("short_receipts", "Receipts of this node's mail that have fewer copies than the policy asks for."),
			shortEver:    desc("short_total", "Mails whose wait for copies ended with too few of them."),
			waiting:      desc("waiting_mails", "Mails that wait for their copies."),
		},
	}
	m.everything = []prometheus.Collector{m.sentReceipts, m.sentBytes, m.received, m.refusals, m.linkBreaks, m.roundTrip, m.copiesWait, m.now}
	return m
}

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	for _, c := range m.everything {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("chain: register metrics: %w", err)
		}
	}
	return nil
}

func (m *metrics) unregister(r prometheus.Registerer) {
	if r == nil {
		return
	}
	for _, c := range m.everything {
		r.Unregister(c)
	}
}

func (m *metrics) sent(peer, lane string, t *transaction) {
	m.sentReceipts.WithLabelValues(peer, lane).Add(float64(t.receipts))
	m.sentBytes.WithLabelValues(peer, lane).Add(float64(t.bytes))
	if lane == toLive {
		m.roundTrip.WithLabelValues(peer).Observe(time.Since(t.begun).Seconds())
	}
}

// Describe and Collect make nowMetrics a prometheus.Collector.
func (n *nowMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{n.linkUp, n.backlog, n.backlogBytes, n.lost, n.skew, n.shortNow, n.shortEver, n.waiting} {
		ch <- d
	}
}

func (n *nowMetrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	s := n.c.Status()
	for _, p := range s.Peers {
		up := 0.0
		if p.Link.Live {
			up = 1
		}
		gauge(n.linkUp, up, p.Name)
		if p.ClockSkew != nil {
			gauge(n.skew, p.ClockSkew.Seconds(), p.Name)
		}
		if p.Backlog == nil {
			continue
		}
		gauge(n.lost, float64(p.Backlog.Lost), p.Name)
		for _, l := range p.Backlog.Logs {
			gauge(n.backlog, float64(l.Receipts), p.Name, l.Store.String(), l.Origin)
			if l.Bytes != nil {
				gauge(n.backlogBytes, float64(*l.Bytes), p.Name, l.Store.String(), l.Origin)
			}
		}
	}
	if s.Backlog != nil {
		gauge(n.lost, float64(s.Backlog.Lost), n.c.opts.Name)
	}
	gauge(n.shortNow, float64(s.ShortNow))
	gauge(n.waiting, float64(s.Waiting))
	ch <- prometheus.MustNewConstMetric(n.shortEver, prometheus.CounterValue, float64(s.ShortEver))
}
