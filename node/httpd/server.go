package httpd

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/netutil"

	"chainmail/archive"
	"chainmail/archive/record"
	"chainmail/node/api"
)

// Archive is what the server reads of the archive.
type Archive interface {
	Resolve(id string) ([]record.Hash, error)
	Message(h record.Hash) (record.Message, error)
	Body(h record.Hash) (io.ReadCloser, error)
	Messages(ctx context.Context, q archive.Query) iter.Seq2[record.Message, error]
	Verify(ctx context.Context, report func(archive.Progress)) error
	Stats() archive.Stats
}

// Draft is a message on its way into the archive.
type Draft interface {
	io.Writer
	Commit(e record.Envelope) (record.Receipt, error)
	Discard()
}

// Options says what a server serves, and where.
type Options struct {
	Archive Archive
	// Begin starts the draft of an imported message, or says why the archive
	// takes none at present.
	Begin func(ctx context.Context) (Draft, error)
	// Status tells what the node knows of itself: name, version, state, reason,
	// start, data directory and listeners. The server adds the archive's part.
	// A state other than active makes /readyz answer 503.
	Status func() api.Status

	Address string      // of the TCP listener, "host:port"; empty: none
	TLS     *tls.Config // the operator's, for people on the TCP listener; nil: plain text is possible
	Socket  string      // path of the unix socket
	Tokens  Tokens      // open what they may over TCP

	// ClusterTLS is for nodes on the TCP listener: those who offer Protocol by
	// ALPN. It asks for a client certificate and does without one, which a node
	// that joins has not yet. Nil: nodes are not served.
	ClusterTLS *tls.Config
	// PublicTLS presents the node's certificate by the cluster's CA to those who
	// ask for api.NodeName, and to all others where TLS is nil. Nil: it does not.
	PublicTLS *tls.Config
	// Peer names the member that a node's certificate belongs to, or says why it
	// is of no use. It is called for each request.
	Peer func(tls.ConnectionState) (string, error)
	// Balancer reports whether an address is that of one of the cluster's
	// balancers, whose X-Forwarded-For is believed. It is called for each
	// connection and request. Nil: there are none.
	Balancer func(netip.Addr) bool
	// Listen opens the listeners ("tcp" and "unix") on a network of a test's
	// own. Nil: the machine's, where the socket's file gets mode 0600 and one
	// left behind by a killed node is removed.
	Listen func(network, address string) (net.Listener, error)

	Cluster Cluster  // nil: the node is in no cluster
	Digests Digester // nil: the node keeps no mail
	Routes  Routes   // nil: there are none

	MaxMessageSize int64         // of an imported message, in bytes; 0: 150 MiB
	Grace          time.Duration // for requests in flight when Run ends; 0: 10 s
	Stall          time.Duration // after which a peer that sends or takes no byte is cut off; 0: 30 s

	Logger   *slog.Logger
	Registry *prometheus.Registry // takes the server's metrics, and is served at /metrics
}

const (
	defaultMaxMessageSize = 150 << 20
	defaultGrace          = 10 * time.Second
	defaultStall          = 30 * time.Second

	headerTimeout  = 10 * time.Second // for a request's header to arrive
	idleTimeout    = 2 * time.Minute  // between requests of one connection
	maxHeaderBytes = 32 << 10
	maxConnections = 1024 // on each listener; more wait to be accepted
	// maxStreams is how many requests of HTTP/2 one connection may have at once:
	// the limits on connections shall mean something.
	maxStreams = 32
)

// Server serves the HTTP interface of one node.
type Server struct {
	opts    Options
	imports keyedLocks
	joins   joinLimit
	polls   *clusterPoll
	metrics metrics
	// stopping is closed when Run begins to end: streams that could last for
	// hours look at it.
	stopping chan struct{}

	admin, tcp net.Listener
}

// New checks the options. It opens no listener.
func New(o Options) (*Server, error) {
	switch {
	case o.Archive == nil || o.Begin == nil || o.Status == nil || o.Logger == nil || o.Registry == nil:
		return nil, errors.New("httpd: Archive, Begin, Status, Logger and Registry must be set")
	case o.Socket == "" || o.Tokens == nil:
		return nil, errors.New("httpd: Socket and Tokens must be set")
	case o.ClusterTLS != nil && o.Peer == nil:
		return nil, errors.New("httpd: ClusterTLS needs Peer")
	case o.MaxMessageSize < 0:
		return nil, fmt.Errorf("httpd: MaxMessageSize is %d bytes: it must not be negative", o.MaxMessageSize)
	}
	if o.Listen == nil {
		if err := checkSocketPath(o.Socket); err != nil {
			return nil, err
		}
	}
	o.MaxMessageSize = cmp.Or(o.MaxMessageSize, defaultMaxMessageSize)
	o.Grace = cmp.Or(o.Grace, defaultGrace)
	o.Stall = cmp.Or(o.Stall, defaultStall)
	s := &Server{opts: o, polls: newClusterPoll(), stopping: make(chan struct{})}
	var err error
	if s.metrics, err = newMetrics(o.Registry); err != nil {
		return nil, fmt.Errorf("httpd: registering metrics: %w", err)
	}
	return s, nil
}

// Listen opens both listeners, so that a node can refuse to start when an
// address is taken. Run calls it when nobody did.
func (s *Server) Listen(ctx context.Context) error {
	listenAdmin, listenTCP := listenSocket, listenMachine
	if own := s.opts.Listen; own != nil {
		listenAdmin = func(_ context.Context, path string) (net.Listener, error) { return own("unix", path) }
		listenTCP = func(_ context.Context, address string) (net.Listener, error) { return own("tcp", address) }
	}
	admin, err := listenAdmin(ctx, s.opts.Socket)
	if err != nil {
		return err
	}
	if s.opts.Address != "" {
		tcp, err := listenTCP(ctx, s.opts.Address)
		if err != nil {
			_ = admin.Close()
			return fmt.Errorf("cannot listen for HTTP on %s: %w: choose another address with --http", s.opts.Address, err)
		}
		s.tcp = netutil.LimitListener(newClientLimit(tcp, s.mayOpen), maxConnections)
	}
	s.admin = netutil.LimitListener(admin, maxConnections)
	return nil
}

// mayOpen is how many connections an address may hold: a balancer has those of
// many clients, and still leaves room for the other nodes.
func (s *Server) mayOpen(client netip.Addr) int {
	if s.opts.Balancer != nil && s.opts.Balancer(client) {
		return maxConnections - maxPerClient
	}
	return maxPerClient
}

func listenMachine(ctx context.Context, address string) (net.Listener, error) {
	return new(net.ListenConfig).Listen(ctx, "tcp", address)
}

// Addr is the address of the TCP listener, nil before Listen or when there is
// none.
func (s *Server) Addr() net.Addr {
	if s.tcp == nil {
		return nil
	}
	return s.tcp.Addr()
}

// Close closes the listeners of a server that will not Run.
func (s *Server) Close() error {
	var errs []error
	for _, l := range []net.Listener{s.admin, s.tcp} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}

// Run serves until ctx ends, lets requests in flight finish for the grace
// time, and returns nil; or it returns the error of a listener that failed. A
// server runs once.
func (s *Server) Run(ctx context.Context) error {
	if s.admin == nil {
		if err := s.Listen(ctx); err != nil {
			return err
		}
	}
	routes := s.routes()
	local, public := s.server(handler(s, routes, true)), s.server(handler(s, routes, false))
	failed := make(chan error, 2)
	running := 1
	go func() { failed <- local.Serve(s.admin) }()
	s.opts.Logger.Info("HTTP for the administrator", "socket", s.opts.Socket)
	if s.tcp != nil {
		running++
		go func() { failed <- s.serveTCP(public) }()
		s.opts.Logger.Info("HTTP", "address", s.tcp.Addr().String(), "tls", s.opts.TLS != nil)
	}

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		running--
		err = fmt.Errorf("serving HTTP: %w", err)
	}
	close(s.stopping)
	s.shutdown(public, local)
	s.polls.end()
	for range running {
		if e := <-failed; !errors.Is(e, http.ErrServerClosed) {
			err = cmp.Or(err, fmt.Errorf("serving HTTP: %w", e))
		}
	}
	return err
}

// serveTCP serves people and nodes on one port. Without a certificate of the
// operator's people may speak plain text.
func (s *Server) serveTCP(public *http.Server) error {
	secure := serverTLS(s.opts.TLS, s.opts.PublicTLS, s.opts.ClusterTLS)
	if secure == nil {
		return public.Serve(s.tcp)
	}
	return public.Serve(newFrontDoor(s.tcp, secure, s.opts.TLS == nil))
}

// shutdown closes the listeners, waits for requests in flight and, when they
// outlast the grace time, breaks their connections.
func (s *Server) shutdown(servers ...*http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), s.opts.Grace)
	defer cancel()
	var wg sync.WaitGroup
	for _, srv := range servers {
		wg.Go(func() {
			if err := srv.Shutdown(ctx); err != nil {
				s.opts.Logger.Warn("HTTP requests cut off at shutdown", "grace", s.opts.Grace.String(), "err", err)
				_ = srv.Close()
			}
		})
	}
	wg.Wait()
}

// server has no ReadTimeout and no WriteTimeout because a large message may
// take its time: it is the stalled peer that is cut off (see limits.go).
func (s *Server) server(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ErrorLog:          slog.NewLogLogger(s.opts.Logger.Handler(), slog.LevelDebug),
	}
}

// DefaultSocket is the admin socket of a data directory.
func DefaultSocket(dataDir string) string { return filepath.Join(dataDir, "admin.sock") }
