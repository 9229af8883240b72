package httpd

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"chainmail/node/api"
)

// healthz says that the process answers; a restart would not help it.
func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) error {
	st := s.opts.Status()
	writeJSON(w, http.StatusOK, api.Health{State: st.State, Reason: st.Reason})
	return nil
}

// readyz says whether the node takes mail: what a balancer should ask.
func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) error {
	st := s.opts.Status()
	code := http.StatusOK
	if st.State != api.StateActive {
		code = http.StatusServiceUnavailable
	}
	writeJSON(w, code, api.Health{State: st.State, Reason: st.Reason})
	return nil
}

// syncz says whether the node holds all that it should.
func (s *Server) syncz(w http.ResponseWriter, _ *http.Request) error {
	sync := api.Sync{Reason: "the node is in no cluster: it may still be starting, or have left"}
	if s.opts.Cluster != nil {
		sync = s.opts.Cluster.Sync()
	}
	code := http.StatusOK
	if !sync.InSync {
		code = http.StatusServiceUnavailable
	}
	writeJSON(w, code, sync)
	return nil
}

// maxExpositions is how many are made at once: each takes memory until its
// client has read it, and whoever likes may ask.
const maxExpositions = 16

// exposition serves the whole registry in Prometheus' format.
func (s *Server) exposition() func(http.ResponseWriter, *http.Request) error {
	h := promhttp.HandlerFor(s.opts.Registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxExpositions})
	return func(w http.ResponseWriter, r *http.Request) error {
		h.ServeHTTP(w, r)
		return nil
	}
}

// metrics are the server's own.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer) (metrics, error) {
	m := metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chainmail_http_requests_total",
			Help: "HTTP requests answered, by route and status. Code 0 is a connection that was broken off before any answer.",
		}, []string{"route", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "chainmail_http_request_seconds",
			Help:    "Time from a request's header to the end of its answer. Bodies count: a slow client makes it long.",
			Buckets: []float64{.0005, .002, .01, .05, .2, 1, 5, 30},
		}, []string{"route"}),
	}
	for _, c := range []prometheus.Collector{m.requests, m.seconds} {
		if err := reg.Register(c); err != nil {
			return m, err
		}
	}
	return m, nil
}
