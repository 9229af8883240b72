package lb

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are a Watcher's figures for Prometheus.
type metrics struct {
	w          *Watcher
	reloads    *prometheus.CounterVec
	blind      prometheus.Counter
	lastReload prometheus.Gauge
	// Read from the status when they are asked for.
	nodes, out, seen, current, trusted, epoch *prometheus.Desc
}

func newMetrics(w *Watcher) *metrics {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "chainmail", Subsystem: "lb", Name: name, Help: help}
	}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName("chainmail", "lb", name), help, labels, nil)
	}
	return &metrics{
		w: w,
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts(opts("reloads_total",
			"Configurations given to the balancer, by result: done, or failed (the one before stays in force).")), []string{"result"}),
		blind: prometheus.NewCounter(prometheus.CounterOpts(opts("blind_polls_total",
			"Looks at the cluster that no member answered."))),
		lastReload: prometheus.NewGauge(prometheus.GaugeOpts(opts("last_reload_timestamp_seconds",
			"When the balancer last got a new configuration. 0: not since the start."))),
		nodes:   desc("node_in", "1 while the node gets new connections of the service.", "node", "service"),
		out:     desc("node_out", "1 while the node gets no new connections of the service, with the reason. Absent while it gets some.", "node", "service", "reason"),
		seen:    desc("view_age_seconds", "How long ago a member of the cluster last answered. Absent before the first answer."),
		current: desc("config_current", "1 while the configuration in force is the one that should be."),
		trusted: desc("trusted", "1 while the cluster's policy names this balancer; with 0 the nodes refuse its connections. Absent while unknown."),
		epoch:   desc("epoch", "The cluster's epoch."),
	}
}

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	for _, c := range []prometheus.Collector{m.reloads, m.blind, m.lastReload, m} {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("lb: register metrics: %w", err)
		}
	}
	return nil
}

// Describe and Collect make metrics a prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.nodes, m.out, m.seen, m.current, m.trusted, m.epoch} {
		ch <- d
	}
}

// Collect: see Describe.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	m.w.mu.Lock()
	s, nodes := m.w.status, m.w.status.all
	m.w.mu.Unlock()
	for _, name := range nodes {
		gauge(m.nodes, one(slices.Contains(s.Mail, name)), name, "smtp")
		gauge(m.nodes, one(slices.Contains(s.Web, name)), name, "http")
	}
	for _, o := range s.Out {
		gauge(m.out, 1, o.Node, o.Service, string(o.Why))
	}
	gauge(m.current, one(s.Current))
	gauge(m.epoch, float64(s.Epoch))
	if !s.SeenAt.IsZero() {
		gauge(m.seen, time.Since(s.SeenAt).Seconds())
	}
	if s.Trusted != nil {
		gauge(m.trusted, one(*s.Trusted))
	}
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Handler serves /metrics, and /healthz: 200 while a configuration is in force,
// else 503. That the cluster cannot be followed just now is told in the answer,
// and no reason for 503: the balancer goes on with what it has.
func (w *Watcher) Handler(g prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(rw http.ResponseWriter, _ *http.Request) {
		s := w.Status()
		rw.Header().Set("Content-Type", "application/json")
		rw.Header().Set("Cache-Control", "no-store")
		if !s.Ready {
			rw.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(rw).Encode(s) // to a client that may have gone
	})
	return mux
}
