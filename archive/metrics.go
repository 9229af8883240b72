package archive

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chainmail/archive/record"
)

// metrics are the archive's figures for Prometheus.
type metrics struct {
	receipts, bytes, duplicates, stalls, corruptions, scrubbed prometheus.Counter
	replicated, replicatedBytes, repairs                       prometheus.Counter
	commit, sync                                               prometheus.Histogram
	live                                                       *liveGauges
}

// liveGauges are read from the archive when they are asked for, all at once.
type liveGauges struct {
	a      *Archive
	gauges []liveGauge
}

type liveGauge struct {
	desc *prometheus.Desc
	read func(Stats) float64
}

func (l *liveGauges) Describe(ch chan<- *prometheus.Desc) {
	for _, g := range l.gauges {
		ch <- g.desc
	}
}

func (l *liveGauges) Collect(ch chan<- prometheus.Metric) {
	s := l.a.Stats()
	for _, g := range l.gauges {
		ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.read(s))
	}
}

func newMetrics(a *Archive) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "chainmail", Subsystem: "archive", Name: name, Help: help})
	}
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "chainmail", Subsystem: "archive", Name: name, Help: help,
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 18), // 0.1 ms … 13 s
		})
	}
	m := &metrics{
		receipts:        counter("receipts_total", "Receipts of this node's own log written to disk since the node started."),
		bytes:           counter("received_bytes_total", "Bytes of the messages of those receipts, as received."),
		duplicates:      counter("duplicate_receipts_total", "Receipts of a message that was already there; its body was not stored again."),
		stalls:          counter("write_stalls_total", "Times that mail had to wait for the database to write out what it holds in memory."),
		corruptions:     counter("database_corruptions_total", "Times that the database itself found a damaged file."),
		scrubbed:        counter("scrubbed_bytes_total", "Bytes of messages that the background check read and hashed."),
		replicated:      counter("replicated_receipts_total", "Receipts that peers sent and that are on disk here since the node started."),
		replicatedBytes: counter("replicated_bytes_total", "Bytes of the messages of those receipts, as they were first received."),
		repairs:         counter("repairs_total", "Receipts that were damaged or gone here and came back whole from a peer."),
		commit:          histogram("commit_seconds", "Time from the end of a message to its receipt being on disk."),
		sync:            histogram("sync_wait_seconds", "Part of commit_seconds spent waiting for the disk."),
		live:            &liveGauges{a: a},
	}
	gauge := func(name, help string, read func(Stats) float64) {
		desc := prometheus.NewDesc(prometheus.BuildFQName("chainmail", "archive", name), help, nil, nil)
		m.live.gauges = append(m.live.gauges, liveGauge{desc, read})
	}
	gauge("receipts", "Receipts in the archive.", func(s Stats) float64 { return float64(s.Receipts) })
	gauge("messages", "Different messages in the archive.", func(s Stats) float64 { return float64(s.Messages) })
	gauge("raw_bytes", "Bytes of all different messages as received.", func(s Stats) float64 { return float64(s.RawBytes) })
	gauge("stored_bytes", "Bytes that the archive takes on disk.", func(s Stats) float64 { return float64(s.StoredBytes) })
	gauge("disk_free_bytes", "Free space on the archive's disk.", func(s Stats) float64 { return float64(s.Free) })
	gauge("disk_min_free_bytes", "Free space below which new mail is refused with 452.", func(s Stats) float64 { return float64(s.MinFree) })
	gauge("committing_messages", "Messages that are complete and wait for the disk: the queue in front of it.", func(s Stats) float64 { return float64(s.Committing) })
	gauge("memory_in_flight_bytes", "Memory that incoming mail holds.", func(s Stats) float64 { return float64(s.InFlight) })
	gauge("memory_limit_bytes", "Memory that incoming mail may hold; more mail waits, then gets 452.", func(s Stats) float64 { return float64(s.MemoryLimit) })
	gauge("scrub_checked_receipts", "Receipts checked in the running pass of the background check.", func(s Stats) float64 { return float64(s.Scrub.Checked) })
	gauge("scrub_total_receipts", "Receipts that the running pass of the background check covers.", func(s Stats) float64 { return float64(s.Scrub.Total) })
	gauge("scrub_finished_timestamp_seconds", "When the background check last read everything, in seconds since 1970; 0 for never.", func(s Stats) float64 {
		if s.Scrub.FinishedAt.IsZero() {
			return 0
		}
		return float64(s.Scrub.FinishedAt.Unix())
	})
	gauge("quarantined", "Receipts whose position has two contents, because some node's disk was rolled back. The mail of both is kept; anything but 0 needs an administrator.", func(s Stats) float64 { return float64(s.Quarantined) })
	gauge("damaged_receipts", "Receipts that a check found unreadable. Anything but 0 needs an administrator.", func(s Stats) float64 { return float64(s.Scrub.Bad) })
	return m
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.receipts, m.bytes, m.duplicates, m.stalls, m.corruptions, m.scrubbed, m.replicated, m.replicatedBytes, m.repairs, m.commit, m.sync, m.live}
}

func (m *metrics) register(r prometheus.Registerer) error {
	for _, c := range m.all() {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

func (m *metrics) unregister(r prometheus.Registerer) {
	if r == nil {
		return
	}
	for _, c := range m.all() {
		r.Unregister(c)
	}
}

func (m *metrics) committed(r *record.Receipt, start, synced time.Time) {
	now := time.Now()
	m.receipts.Inc()
	m.bytes.Add(float64(r.Size))
	m.commit.Observe(now.Sub(start).Seconds())
	m.sync.Observe(now.Sub(synced).Seconds())
}
