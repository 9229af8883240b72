package httpd

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"chainmail/node/api"
)

// route is one operation. The query parameters that it knows are part of it:
// others are refused, since a mistyped filter that is silently ignored would
// answer another question.
type route struct {
	pattern string // as for http.ServeMux
	access  access
	query   []string
	handle  func(w http.ResponseWriter, r *http.Request) error
}

func (s *Server) routes() []route {
	return []route{
		{"GET /healthz", open, nil, s.healthz},
		{"GET /readyz", open, nil, s.readyz},
		{"GET /syncz", open, nil, s.syncz},
		{"GET /metrics", open, nil, s.exposition()},
		{"GET " + api.Prefix + "/openapi.json", open, nil, s.openAPI},
		{"GET " + api.Prefix + "/status", token, nil, s.status},
		{"GET " + api.Prefix + "/messages", token, listParameters, s.listMessages},
		{"GET " + api.Prefix + "/messages/{id}", token, nil, s.showMessage},
		{"GET " + api.Prefix + "/messages/{id}/raw", token, nil, s.rawMessage},
		{"POST " + api.Prefix + "/messages", admin, nil, s.importMessage},
		{"POST " + api.Prefix + "/verify", admin, nil, s.verify},
		{"GET " + api.Prefix + "/tokens", admin, nil, s.listTokens},
		{"POST " + api.Prefix + "/tokens", admin, nil, s.makeToken},
		{"DELETE " + api.Prefix + "/tokens/{id}", admin, nil, s.revokeToken},

		{"GET " + api.Prefix + "/cluster", anyToken, nil, s.showCluster},
		{"GET " + api.Prefix + "/cluster/ca", open, nil, s.showCA},
		{"GET " + api.Prefix + "/cluster/self", peer, nil, s.showSelf},
		{"GET " + api.Prefix + "/cluster/digests", peer, []string{"log", "segment", "first", "last"}, s.digests},
		{"POST " + api.Prefix + "/cluster/join", joiner, nil, s.join},
		{"POST " + api.Prefix + "/cluster/tokens", admin, nil, s.makeJoinToken},
		{"PATCH " + api.Prefix + "/cluster/policies", admin, nil, s.setPolicies},
		{"POST " + api.Prefix + "/cluster/members/{name}/drain", admin, nil, s.drainMember},
		{"DELETE " + api.Prefix + "/cluster/members/{name}/drain", admin, nil, s.cancelDrain},
		{"POST " + api.Prefix + "/cluster/members/{name}/move", admin, nil, s.moveMember},
		{"DELETE " + api.Prefix + "/cluster/members/{name}", admin, []string{"force"}, s.removeMember},
		{"GET " + api.Prefix + "/cluster/members/{name}/safe-to-stop", token, nil, s.safeToStop},
		{"POST " + api.Prefix + "/cluster/keys/rotate", admin, nil, s.rotateKeys},
		{"POST " + api.Prefix + "/cluster/verify", admin, nil, s.verifyCluster},
		{"GET " + api.Prefix + "/routes", token, nil, s.listRoutes},
		{"GET " + api.Prefix + "/routes/{name}/parked", token, nil, s.listParked},
		{"POST " + api.Prefix + "/routes/{name}/retry", admin, nil, s.retryRoute},
	}
}

// handler serves the routes on one listener; trusted is true for the admin
// socket.
func handler(s *Server, routes []route, trusted bool) http.Handler {
	mux := http.NewServeMux()
	for _, rt := range routes {
		mux.HandleFunc(rt.pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := s.serve(rt, trusted, w, r); err != nil {
				s.fail(w, r, err)
			}
		})
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		if !trusted {
			s.believeBalancer(r)
		}
		m := newMeter(w, s.opts.Stall)
		defer func() { s.account(m, r, time.Since(began)) }()
		defer s.recoverPanic(m, r)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if h, pattern := mux.Handler(r); pattern == "" {
			s.noRoute(h, m, r)
			return
		}
		if r.ContentLength != 0 {
			// For bodies that no handler reads: net/http drains the rest of them.
			_ = m.control.SetReadDeadline(began.Add(s.opts.Stall))
		}
		mux.ServeHTTP(m, r)
	})
}

// serve checks the caller's rights and the parameters, then calls the handler.
func (s *Server) serve(rt route, trusted bool, w http.ResponseWriter, r *http.Request) error {
	if err := s.allow(rt, s.caller(r, trusted)); err != nil {
		return err
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return badRequest("cannot read the parameters: %v", err)
	}
	for _, name := range slices.Sorted(maps.Keys(query)) {
		switch {
		case !slices.Contains(rt.query, name):
			return badRequest("unknown parameter %q", name).hint("%s", knownParameters(rt.query))
		case len(query[name]) > 1:
			return badRequest("the parameter %q is given %d times: once is possible", name, len(query[name]))
		}
	}
	return rt.handle(w, r)
}

func knownParameters(names []string) string {
	if len(names) == 0 {
		return "this resource takes no parameters"
	}
	return "the parameters are " + strings.Join(names, ", ")
}

// noRoute answers as h, the mux's own handler for requests that match no
// route, would: but in JSON.
func (s *Server) noRoute(h http.Handler, m *meter, r *http.Request) {
	answer := &discarded{header: make(http.Header)}
	h.ServeHTTP(answer, r)
	switch answer.code {
	case http.StatusMethodNotAllowed:
		m.Header().Set("Allow", answer.header.Get("Allow"))
		s.fail(m, r, &StatusError{
			answer.code, fmt.Sprintf("%s is not possible on %s", r.Method, r.URL.Path),
			"allowed: " + answer.header.Get("Allow"),
		})
	default:
		s.fail(m, r, notFound("there is nothing at %s", r.URL.Path).
			hint("the description of the interface is at %s/openapi.json", api.Prefix))
	}
}

// discarded keeps only the status and header of an answer.
type discarded struct {
	header http.Header
	code   int
}

func (d *discarded) Header() http.Header         { return d.header }
func (d *discarded) Write(p []byte) (int, error) { return len(p), nil }
func (d *discarded) WriteHeader(code int)        { d.code = code }

// recoverPanic answers 500 for a handler's panic, or breaks the connection
// when an answer has begun. http.ErrAbortHandler is a handler's own wish to
// break it.
func (s *Server) recoverPanic(m *meter, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(p)
	}
	s.logPanic(r, p)
	if m.code != 0 {
		panic(http.ErrAbortHandler)
	}
	s.fail(m, r, &StatusError{http.StatusInternalServerError, "an internal error", "the node's log has the details"})
}

// account notes one request in metrics and log. r.Pattern, which the mux set,
// and not the path, names the route: paths are without number.
func (s *Server) account(m *meter, r *http.Request, took time.Duration) {
	name := r.Pattern
	if name == "" {
		name = "none"
	}
	s.metrics.requests.WithLabelValues(name, strconv.Itoa(m.code)).Inc()
	s.metrics.seconds.WithLabelValues(name).Observe(took.Seconds())
	s.opts.Logger.Debug("HTTP request", "method", r.Method, "path", r.URL.Path, "code", m.code,
		"bytes", m.bytes, "took", took.String(), "client", r.RemoteAddr)
}
