package smtpd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/pires/go-proxyproto"
)

// connector is a Connector at work.
type connector struct {
	Connector
	server   *Server
	listener net.Listener
	plain    *frame // serves connections without TLS
	secure   *frame // serves connections with TLS

	clients    clientRules
	senders    addressRules
	recipients addressRules
	balancers  []netip.Prefix
	users      *users // nil when Auth is off

	metrics *connectorMetrics
	open    atomic.Int64
}

func (c *connector) offersStartTLS() bool {
	return c.TLS == TLSStartTLS || c.TLS == TLSRequired
}

// network splits the address into what net.Listen wants.
func (c *connector) network() (network, address string) {
	if path, ok := strings.CutPrefix(c.Address, "unix:"); ok {
		return "unix", path
	}
	return "tcp", c.Address
}

// listen opens the socket.
func (c *connector) listen() error {
	network, address := c.network()
	if network == "unix" {
		removeStale(address)
	}
	listener, err := c.server.opts.Listen(network, address)
	if err != nil {
		return fmt.Errorf("connector %q: cannot listen on %s: %w: choose another address, or stop what uses it (a port below 1024 needs root or CAP_NET_BIND_SERVICE)", c.Name, c.Address, err)
	}
	if network == "unix" {
		if err := os.Chmod(address, c.SocketMode); err != nil {
			listener.Close()
			return fmt.Errorf("connector %q: cannot set the mode of %s: %w", c.Name, address, err)
		}
	}
	c.listener = listener
	return nil
}

// removeStale removes the socket of a process that was killed. One that is
// answered at is left, so that listening on it fails.
func removeStale(path string) {
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&os.ModeSocket == 0 {
		return
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
	} else if errors.Is(err, syscall.ECONNREFUSED) {
		_ = os.Remove(path) // listening tells when this fails
	}
}

// accept takes connections until the listener closes.
func (c *connector) accept() {
	pause := 5 * time.Millisecond
	for {
		conn, err := c.listener.Accept()
		switch {
		case err == nil:
			pause = 5 * time.Millisecond
			c.take(conn)
		case errors.Is(err, net.ErrClosed):
			return
		default:
			// Most often the process is out of file descriptors.
			c.server.log.Error("cannot accept connections", slog.String("connector", c.Name), slog.Any("err", err))
			select {
			case <-time.After(pause):
			case <-c.server.stopping:
			}
			pause = min(2*pause, time.Second)
		}
	}
}

// take registers a connection and prepares it on a goroutine of its own: none
// of what a client can delay holds up the next one.
func (c *connector) take(conn net.Conn) {
	l := &link{server: c.server, connector: c, limits: &c.server.opts.Limits, socket: conn, log: c.server.log, since: time.Now()}
	if c.Kind == KindChain {
		l.pool = poolFront
	}
	l.ctx, l.cancel = context.WithCancel(c.server.life)
	c.open.Add(1)
	c.metrics.open.Inc()
	c.metrics.total.Inc()
	if !c.server.enter(l) {
		l.turnAway(conn, reasonConnections, "421 4.7.0 too many connections, try again later")
		return
	}
	c.server.preparing.Go(func() { c.prepare(l) })
}

// prepare finds out who the client is and whether it may go on, and hands the
// connection to go-smtp.
func (c *connector) prepare(l *link) {
	conn, err := c.identify(l)
	if err != nil {
		l.refused(reasonProxy)
		l.log.Warn("PROXY protocol header missing or wrong: let the balancer send it; if this is none, take its address out of the cluster's balancers (chainmail cluster set balancers=…) and of proxy_protocol.trusted",
			slog.String("connector", c.Name), slog.String("balancer", l.socket.RemoteAddr().String()), slog.Any("err", err))
		_ = l.socket.Close()
		l.release()
		return
	}
	l.log = c.server.log.With(slog.String("connector", c.Name), slog.String("client", l.address))
	why, greeting := c.admit(l)
	secure := ""
	if c.TLS == TLSImplicit {
		secured, err := l.handshake(conn)
		if err != nil {
			_ = l.socket.Close()
			l.release()
			return
		}
		conn, secure = secured, tlsName(secured.ConnectionState())
	}
	if greeting != "" {
		l.turnAway(conn, why, greeting)
		return
	}
	g := newGate(conn, l)
	g.secure = secure
	if secure != "" {
		c.secure.serve(g)
	} else {
		c.plain.serve(g)
	}
}

// identify reads the PROXY protocol header where one is due. It is required
// there: an SMTP client waits for the greeting, so a header that may also be
// missing could only be awaited for some time.
func (c *connector) identify(l *link) (net.Conn, error) {
	conn := l.socket
	l.setClient(conn.RemoteAddr())
	if !c.isBalancer(l.client) {
		return conn, nil
	}
	proxied := proxyproto.NewConn(conn,
		proxyproto.WithPolicy(proxyproto.REQUIRE),
		proxyproto.SetReadHeaderTimeout(proxyHeaderTimeout))
	if proxied.ProxyHeader() == nil {
		if _, err := proxied.Read(nil); err != nil {
			return nil, err
		}
		return nil, proxyproto.ErrNoProxyProtocol
	}
	if l.setClient(proxied.RemoteAddr()); !l.client.IsValid() {
		l.setClient(conn.RemoteAddr()) // a unix socket of the balancer's, for example: no address of a client
	}
	l.check = proxied.ProxyHeader().Command.IsLocal()
	return proxied, nil
}

// isBalancer reports whether a PROXY protocol header is due from an address.
func (c *connector) isBalancer(a netip.Addr) bool {
	if contains(c.balancers, a) {
		return true
	}
	all := c.server.opts.Balancer
	return all != nil && c.Kind != KindChain && a.IsValid() && all(a)
}

func (l *link) setClient(addr net.Addr) {
	l.client, l.address = netip.Addr{}, ""
	if addr == nil {
		return
	}
	l.address = addr.String()
	if tcp, ok := addr.(*net.TCPAddr); ok {
		ip, _ := netip.AddrFromSlice(tcp.IP)
		l.client = ip.Unmap()
		l.address = netip.AddrPortFrom(l.client, uint16(tcp.Port)).String()
	}
}

// admit decides whether the client may go on; an empty greeting means yes. A
// balancer's health check may: it asks for the node, once a second, and not for
// what its address may do.
func (c *connector) admit(l *link) (reason, string) {
	if l.check {
		return 0, ""
	}
	// Who comes to a chain connector shows later whether it needs the list.
	if c.Kind != KindChain && !c.clients.allow(l.ctx, c.server.opts.Resolver, l.client) {
		return reasonClient, "554 5.7.1 your address " + l.client.String() + " may not use this archive"
	}
	if !c.server.countClient(l) {
		return reasonClientConnections, "421 4.7.0 too many connections from your address, try again later"
	}
	return 0, ""
}

// frame is one of the two go-smtp servers of a connector. As its listener it
// hands it the gates.
type frame struct {
	smtp   *smtp.Server
	queue  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newFrame(c *connector, secure bool) *frame {
	f := &frame{queue: make(chan net.Conn), closed: make(chan struct{})}
	f.smtp = smtp.NewServer(smtp.BackendFunc(func(conn *smtp.Conn) (smtp.Session, error) {
		return conn.Conn().(*gate).session, nil
	}))
	o := &c.server.opts
	f.smtp.Domain = o.Hostname
	f.smtp.LMTP = c.Kind == KindLMTP
	f.smtp.MaxRecipients = o.Limits.MaxRecipients
	f.smtp.MaxMessageBytes = o.Limits.MaxMessageSize // for the announcement
	f.smtp.MaxLineLength = 0                         // the gate's concern,
	f.smtp.ReadTimeout, f.smtp.WriteTimeout = 0, 0   // and so are these
	f.smtp.AllowInsecureAuth = true                  // and this the session's
	f.smtp.EnableSMTPUTF8 = true
	f.smtp.EnableBINARYMIME = true
	f.smtp.ErrorLog = frameLog{c.server.log}
	if !secure && c.offersStartTLS() {
		f.smtp.TLSConfig = c.TLSConfig // for the announcement
	}
	return f
}

// serve hands a connection to go-smtp.
func (f *frame) serve(g *gate) {
	select {
	case f.queue <- g:
	case <-f.closed:
		_ = g.Close()
	}
}

// shutdown ends a frame whose connections are closed. go-smtp's Shutdown, unlike
// its Close, lets the goroutines that served them end by themselves.
func (f *frame) shutdown() {
	_ = f.smtp.Shutdown(context.Background())
	f.Close() // Shutdown misses it when Serve has not come to listen yet
}

// Accept, Close and Addr make the frame its server's listener.
func (f *frame) Accept() (net.Conn, error) {
	select {
	case conn := <-f.queue:
		return conn, nil
	case <-f.closed:
		return nil, net.ErrClosed
	}
}

func (f *frame) Close() error {
	f.once.Do(func() { close(f.closed) })
	return nil
}

func (f *frame) Addr() net.Addr { return frameAddr{} }

type frameAddr struct{}

func (frameAddr) Network() string { return "gate" }
func (frameAddr) String() string  { return "gate" }

// frameLog takes what go-smtp has to say, which is about its own panics.
type frameLog struct{ log *slog.Logger }

func (l frameLog) Printf(format string, args ...any) {
	l.log.Error("go-smtp", slog.String("err", fmt.Sprintf(format, args...)))
}

func (l frameLog) Println(args ...any) {
	l.log.Error("go-smtp", slog.String("err", fmt.Sprint(args...)))
}
