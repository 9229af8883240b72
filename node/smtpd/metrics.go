package smtpd

import (
	"fmt"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// reason says why something was refused.
type reason int

const (
	reasonConnections reason = iota
	reasonClientConnections
	reasonClient
	reasonProxy
	reasonRate
	reasonSender
	reasonRecipient
	reasonSize
	reasonAuth
	reasonErrors
	reasonInjection
	reasonMemory
	reasonDisk
	reasonClosed
	reasonStarting
	reasonShort
	reasonNoNode
	reasonCertificate
	reasonFault
	reasonCount
)

func (r reason) String() string {
	return [reasonCount]string{
		"connections", "client_connections", "client", "proxy_header", "rate", "sender", "recipient", "size",
		"auth", "errors", "starttls_injection", "memory", "disk", "shutdown",
		"starting", "copies_short", "not_a_node", "certificate", "fault",
	}[r]
}

// metrics are those of all connectors, told apart by the label connector.
type metrics struct {
	open              *prometheus.GaugeVec
	total             *prometheus.CounterVec
	messages          *prometheus.CounterVec
	bytes             *prometheus.CounterVec
	seconds           *prometheus.HistogramVec
	refusals          *prometheus.CounterVec
	handshakeFailures *prometheus.CounterVec
	reports           *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "chainmail_smtp_" + name, Help: help}, append([]string{"connector"}, labels...))
	}
	m := &metrics{
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "chainmail_smtp_connections", Help: "SMTP and LMTP connections that are open now.",
		}, []string{"connector"}),
		total:    counter("connections_total", "SMTP and LMTP connections that were accepted by the system, also those turned away."),
		messages: counter("messages_total", "Messages whose body was read to its end or broke off, by the SMTP code answered: 250 is archived, 4xx may come again.", "code"),
		bytes:    counter("message_bytes_total", "Bytes of the messages that were archived."),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "chainmail_smtp_commit_seconds",
			Help:    "Time from the last byte of a message to its 250: what the archive needs to put it on disk.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 18), // 0.1 ms to 13 s
		}, []string{"connector"}),
		refusals:          counter("refusals_total", "Connections, commands and messages that were refused, by reason.", "reason"),
		handshakeFailures: counter("tls_handshake_failures_total", "TLS handshakes that failed."),
		reports:           counter("journal_reports_total", "Messages on connectors for journal reports: understood reports; partly understood ones, for example of protected mail; damaged ones, archived as they are; and mail that is no report.", "result"),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.open, m.total, m.messages, m.bytes, m.seconds, m.refusals, m.handshakeFailures, m.reports} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("smtpd: register metrics: %w", err)
		}
	}
	return m, nil
}

// connectorMetrics are one connector's, looked up once.
type connectorMetrics struct {
	open              prometheus.Gauge
	total             prometheus.Counter
	accepted          prometheus.Counter
	outcomes          *prometheus.CounterVec
	bytes             prometheus.Counter
	seconds           prometheus.Observer
	refusals          [reasonCount]prometheus.Counter
	handshakeFailures prometheus.Counter
	reports           map[string]prometheus.Counter
}

// What became of the search for a journal report.
const (
	reportUnderstood = "understood"
	reportPartly     = "partly"
	reportDamaged    = "damaged"
	reportNone       = "none"
)

func (m *metrics) connector(name string) *connectorMetrics {
	c := &connectorMetrics{
		open:              m.open.WithLabelValues(name),
		total:             m.total.WithLabelValues(name),
		accepted:          m.messages.WithLabelValues(name, "250"),
		outcomes:          m.messages.MustCurryWith(prometheus.Labels{"connector": name}),
		bytes:             m.bytes.WithLabelValues(name),
		seconds:           m.seconds.WithLabelValues(name),
		handshakeFailures: m.handshakeFailures.WithLabelValues(name),
		reports:           map[string]prometheus.Counter{},
	}
	for _, result := range []string{reportUnderstood, reportPartly, reportDamaged, reportNone} {
		c.reports[result] = m.reports.WithLabelValues(name, result)
	}
	for why := range reasonCount {
		c.refusals[why] = m.refusals.WithLabelValues(name, why.String())
	}
	return c
}

func (c *connectorMetrics) archived(size int64, took time.Duration) {
	c.accepted.Inc()
	c.bytes.Add(float64(size))
	c.seconds.Observe(took.Seconds())
}

func (c *connectorMetrics) outcome(code int) {
	c.outcomes.WithLabelValues(strconv.Itoa(code)).Inc()
}
