package smtpd

import (
	"context"
	"crypto/tls"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chainmail/archive/record"
)

// Draft is a message that is coming in. Commit makes it durable; Discard
// forgets it and is harmless afterwards. After ErrShort the message is durable
// here all the same.
type Draft interface {
	io.Writer
	Commit(record.Envelope) (record.Receipt, error)
	Discard()
}

// JournalParser is given the bytes of a message while they arrive. Close gives
// what a journal report tells, nil for a message that is none; an error says why
// a report is not understood, or with a journal, what of it is not. Close is
// called once for every parser, also when the message is given up.
type JournalParser interface {
	io.Writer
	Close() (*record.Journal, error)
}

// Resolver finds the names of clients; *net.Resolver is one.
type Resolver interface {
	LookupAddr(ctx context.Context, addr string) ([]string, error)
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Options is all that a Server needs. Begin is required, and at least one
// connector.
type Options struct {
	// Hostname greets clients; empty for the name of the machine.
	Hostname   string
	Connectors []Connector
	Limits     Limits

	// Begin opens a draft. ctx ends when the connection is closed by force.
	Begin func(ctx context.Context) Draft
	// Accepting is asked before a mail is begun, so that a full disk (or
	// ErrStarting) is told to the client at MAIL and not after its body. Nil:
	// always.
	Accepting func() error
	// NewJournalParser is needed by connectors with JournalExchange.
	NewJournalParser func() JournalParser

	Logger     *slog.Logger          // nil: silent
	Registerer prometheus.Registerer // nil: metrics are not exported
	Resolver   Resolver              // nil: the system's
	// Balancer reports whether an address is that of a balancer of the cluster:
	// connections from it to any connector but KindChain must begin with a PROXY
	// protocol header, as those from its ProxyFrom. It is asked for every
	// connection. Nil: there are none.
	Balancer func(netip.Addr) bool
	// Listen opens sockets; nil: net.Listen.
	Listen func(network, address string) (net.Listener, error)
}

// Kind is the protocol of a connector.
type Kind string

// TLSMode says how a connector encrypts.
type TLSMode string

// AuthMode says whether clients log in.
type AuthMode string

// Journal is the kind of journal report that a connector looks for.
type Journal string

// The values of the enumerations. The zero value means the first of each.
const (
	KindSMTP Kind = "smtp"
	KindLMTP Kind = "lmtp" // RFC 2033: a reply for every recipient
	// KindChain is for the nodes of the cluster: see Connector.Peer.
	KindChain Kind = "chain"

	TLSNone     TLSMode = "none"
	TLSStartTLS TLSMode = "starttls" // RFC 3207, offered
	TLSRequired TLSMode = "required" // STARTTLS, and no mail without it
	TLSImplicit TLSMode = "implicit" // RFC 8314, from the first byte

	AuthOff      AuthMode = "off"
	AuthOptional AuthMode = "optional"
	AuthRequired AuthMode = "required"

	JournalNone     Journal = "none"
	JournalExchange Journal = "exchange"
)

// Connector is one listener.
type Connector struct {
	Name string // stands in receipts, logs and metrics
	Kind Kind
	// Address is host:port, or unix:/path for a unix socket.
	Address    string
	SocketMode fs.FileMode // of a unix socket; 0 means 0660

	TLS       TLSMode
	TLSConfig *tls.Config // needed unless TLS is TLSNone

	Auth  AuthMode
	Users string // file made by "htpasswd -B", read again when it changes

	Journal Journal

	// Clients may connect: IP addresses, CIDR blocks, and domains, which
	// stand for the client's forward-confirmed host name and names below it.
	// Clients of a unix socket always may. Empty: everybody. With KindChain
	// they are the foreign mail servers, and empty means none.
	Clients []string
	// Senders and Recipients may stand in MAIL and RCPT: addresses, domains
	// (with all names below them), and "<>" for the null sender. Empty: all.
	Senders    []string
	Recipients []string
	// ProxyFrom are the IP addresses and CIDR blocks of balancers, from which
	// a PROXY protocol header is required; from others none is looked for.
	ProxyFrom []string

	// Peer and Serve are needed by KindChain, and only there. A client that
	// shows a certificate during STARTTLS, which TLSConfig must ask for but
	// not require, is told to Peer. If Peer knows the name of the node, Serve
	// is given the connection, without deadlines and from the first byte under
	// TLS on, and returns when it is done with it. ctx ends when the server
	// drains. Nothing of Limits applies to such a connection, except
	// DrainTimeout: then it is closed under Serve.
	Peer  func(state tls.ConnectionState) (name string, err error)
	Serve func(ctx context.Context, conn net.Conn, peer string)
}

// Limits bound what clients may ask for.
type Limits struct {
	MaxMessageSize int64 // bytes; 0 means 150 MiB
	MaxRecipients  int   // of one mail; 0 means 10,000

	MaxConnections          int     // of all connectors together; 0: no limit
	MaxConnectionsPerClient int     // an IPv4 address or IPv6 /64; 0: no limit
	MessagesPerMinute       float64 // of one client; 0: no limit
	MaxErrors               int     // protocol errors between two mails; 0 means 20

	// IdleTimeout is for a whole command line, and for each piece of a body.
	// 0 means 5 minutes, the least that RFC 5321 4.5.3.2 allows.
	IdleTimeout time.Duration
	// DrainTimeout is how long mail in flight may take to finish once the
	// server is asked to stop; 0 means 30 seconds.
	DrainTimeout time.Duration
}

const (
	defaultMessageSize   = 150 << 20
	defaultRecipients    = 10_000
	defaultMaxErrors     = 20
	defaultIdle          = 5 * time.Minute
	defaultDrain         = 30 * time.Second
	handshakeTimeout     = 30 * time.Second // of a TLS handshake
	proxyHeaderTimeout   = 10 * time.Second // a balancer sends it at once
	lookupTimeout        = 10 * time.Second // of a client's host name
	lingerTimeout        = time.Second      // for a last reply to arrive
	defaultSocketMode    = fs.FileMode(0o660)
	maxPathLength        = 1024 // bytes of an address; RFC 5321 asks for 256
	maxHeloLength        = 255  // bytes; the length of a domain name
	commandBuffer        = 4 << 10
	bodyBuffer           = 64 << 10 // also the longest command line
	minBodyRate          = 256      // bytes a second, over a whole body
	maxSkippedLine       = 1 << 20  // bytes of a longer one that are skipped
	maxGatheredReplies   = 64 << 10
	maxClientsRemembered = 10_000

	// Of connections to a KindChain connector that have not shown yet what
	// they are. All nodes of a cluster may dial at once, each a few times.
	maxUndecided          = 512
	maxUndecidedPerClient = 128
	undecidedTimeout      = time.Minute // from accept on
)

func (l Limits) withDefaults() Limits {
	if l.MaxMessageSize == 0 {
		l.MaxMessageSize = defaultMessageSize
	}
	if l.MaxRecipients == 0 {
		l.MaxRecipients = defaultRecipients
	}
	if l.MaxErrors == 0 {
		l.MaxErrors = defaultMaxErrors
	}
	if l.IdleTimeout == 0 {
		l.IdleTimeout = defaultIdle
	}
	if l.DrainTimeout == 0 {
		l.DrainTimeout = defaultDrain
	}
	return l
}

// flood is how many bytes of a body are read that shall not be kept, so that
// an honest client learns why; beyond it the connection is closed.
func (l *Limits) flood() int64 { return 2*l.MaxMessageSize + maxSkippedLine }
