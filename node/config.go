package node

import (
	"cmp"
	"os"
	"slices"
	"strings"
	"time"
)

// Config is everything an operator may choose about one node. The yaml tags
// are the keys of the configuration file; packaging/chainmail.yaml documents
// each of them.
type Config struct {
	Name       string      `yaml:"name"`
	Role       Role        `yaml:"role"`
	Cluster    string      `yaml:"cluster"` // identity of the cluster that the node must belong to
	DataDir    string      `yaml:"data_dir"`
	SMTP       string      `yaml:"smtp"`
	Chain      string      `yaml:"chain"`
	Gossip     string      `yaml:"gossip"`
	Raft       string      `yaml:"raft"`
	HTTP       string      `yaml:"http"`
	Advertise  Advertise   `yaml:"advertise"`
	HTTPTLS    KeyPair     `yaml:"http_tls"`
	ChainAllow []string    `yaml:"chain_allow"` // IP addresses, CIDR blocks and domains of foreign servers that may hand in mail on the chain port
	Connectors []Connector `yaml:"connectors"`
	Routes     []Route     `yaml:"routes"`
	Limits     Limits      `yaml:"limits"`
	Disk       Disk        `yaml:"disk"`
	Scrub      Scrub       `yaml:"scrub"`
	Log        Log         `yaml:"log"`
}

// KeyPair names two PEM files. Both are read again when they change.
type KeyPair struct {
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
}

// Advertise says where others reach the node's listeners, "host:port" or only
// a host, when that is not where they listen: behind a translated address, or
// on a machine with several network cards.
type Advertise struct {
	SMTP   string `yaml:"smtp"`
	Chain  string `yaml:"chain"`
	Gossip string `yaml:"gossip"`
	Raft   string `yaml:"raft"`
	HTTP   string `yaml:"http"`
}

// Route sends the node's mail on to a foreign mail server.
type Route struct {
	Name         string     `yaml:"name"`
	Target       string     `yaml:"target"` // host:port
	TLS          RouteTLS   `yaml:"tls"`
	User         string     `yaml:"user"`
	PasswordFile string     `yaml:"password_file"`
	Send         RouteSend  `yaml:"send"`
	From         RouteStart `yaml:"from"`
	MaxRetries   int        `yaml:"max_retries"` // of one mail; 0: for ever
	Concurrency  int        `yaml:"concurrency"`
	Sender       string     `yaml:"sender"`    // in place of each mail's own
	Recipient    string     `yaml:"recipient"` // in place of each mail's own
}

// RouteTLS is how a route encrypts.
type RouteTLS struct {
	Mode TLSMode `yaml:"mode"`
	CA   string  `yaml:"ca"` // PEM file of the authorities to believe; empty: the system's
}

// RouteSend says which receipts a route sends.
type RouteSend string

// RouteStart says where a new route begins.
type RouteStart string

// Role is what a node does in its cluster.
type Role string

// Connector is one listener that takes mail.
type Connector struct {
	Name          string        `yaml:"name"`
	Kind          Kind          `yaml:"kind"`
	Listen        string        `yaml:"listen"`
	TLS           TLS           `yaml:"tls"`
	Journal       Journal       `yaml:"journal"`
	Allow         Allow         `yaml:"allow"`
	Auth          Auth          `yaml:"auth"`
	ProxyProtocol ProxyProtocol `yaml:"proxy_protocol"`
}

// Kind is the protocol of a connector.
type Kind string

// Journal is the kind of journal report that a connector looks for.
type Journal string

// TLSMode says whether and how a connector encrypts.
type TLSMode string

// AuthMode says whether clients of a connector log in.
type AuthMode string

// LogLevel is the least important level that is logged.
type LogLevel string

// LogFormat is the form of a log line.
type LogFormat string

// The values that the enumerated keys take.
const (
	RoleData    Role = "data"
	RoleWitness Role = "witness" // votes, keeps no mail

	SendAll RouteSend = "all"
	SendOwn RouteSend = "own" // what this node took itself

	FromNow       RouteStart = "now"
	FromBeginning RouteStart = "beginning"

	KindSMTP Kind = "smtp"
	KindLMTP Kind = "lmtp"

	JournalNone     Journal = "none"
	JournalExchange Journal = "exchange"

	TLSNone     TLSMode = "none"
	TLSStartTLS TLSMode = "starttls"
	TLSRequired TLSMode = "required"
	TLSImplicit TLSMode = "implicit"

	AuthOff      AuthMode = "off"
	AuthOptional AuthMode = "optional"
	AuthRequired AuthMode = "required"

	LogDebug LogLevel = "debug"
	LogInfo  LogLevel = "info"
	LogWarn  LogLevel = "warn"
	LogError LogLevel = "error"

	LogText LogFormat = "text"
	LogJSON LogFormat = "json"
)

// TLS is the encryption of a connector.
type TLS struct {
	Mode TLSMode `yaml:"mode"`
	Cert string  `yaml:"cert"`
	Key  string  `yaml:"key"`
}

// Allow limits who may hand in mail; an empty list allows everybody.
type Allow struct {
	Clients    []string `yaml:"clients"`    // IP addresses, CIDR blocks and domains
	Senders    []string `yaml:"senders"`    // addresses and domains of MAIL FROM, "<>" for none
	Recipients []string `yaml:"recipients"` // addresses and domains of RCPT TO
}

// Auth is the login of a connector's clients.
type Auth struct {
	Mode  AuthMode `yaml:"mode"`
	Users string   `yaml:"users"` // htpasswd file with bcrypt hashes
}

// ProxyProtocol names the balancers whose PROXY header is believed.
type ProxyProtocol struct {
	Trusted []string `yaml:"trusted"` // IP addresses and CIDR blocks
}

// Limits bound what clients may ask of the node. Zero means no limit for the
// counts of connections and the rate.
type Limits struct {
	MaxMessageSize          Size     `yaml:"max_message_size"`
	MaxRecipients           int      `yaml:"max_recipients"`
	MaxConnections          int      `yaml:"max_connections"`
	MaxConnectionsPerClient int      `yaml:"max_connections_per_client"`
	RatePerClient           float64  `yaml:"rate_per_client"` // mails a minute
	MemoryInFlight          Size     `yaml:"memory_in_flight"`
	MemoryWait              Duration `yaml:"memory_wait"`
	IdleTimeout             Duration `yaml:"idle_timeout"`
	DrainTimeout            Duration `yaml:"drain_timeout"`
	LeaveGrace              Duration `yaml:"leave_grace"`
}

// Disk is the guard of the data directory's file system.
type Disk struct {
	MinFree Size `yaml:"min_free"`
}

// Scrub is the background check of every stored body.
type Scrub struct {
	Period Duration `yaml:"period"`
}

// Log is the form of the node's log.
type Log struct {
	Level  LogLevel  `yaml:"level"`
	Format LogFormat `yaml:"format"`
}

// Default is the configuration of a node that was told nothing. Its connectors
// are left to Complete, because they depend on what the operator adds.
func Default() Config {
	return Config{
		Role:    RoleData,
		DataDir: "/var/lib/chainmail",
		Chain:   ":8091",
		Gossip:  ":8092",
		Raft:    ":8093",
		HTTP:    ":8025",
		Limits: Limits{
			MaxMessageSize: 150 * MiB,
			MaxRecipients:  10_000,
			MaxConnections: 1000,
			MemoryInFlight: 128 * MiB,
			MemoryWait:     Duration(30 * time.Second),
			// RFC 5321 4.5.3.2.7: a server waits at least five minutes for the next command.
			IdleTimeout:  Duration(5 * time.Minute),
			DrainTimeout: Duration(30 * time.Second),
			LeaveGrace:   Duration(15 * time.Second),
		},
		Disk:  Disk{MinFree: GiB},
		Scrub: Scrub{Period: Duration(7 * 24 * time.Hour)},
		Log:   Log{Level: LogInfo, Format: LogText},
	}
}

const (
	smtpConnector = "smtp" // the connector that the key smtp is about
	defaultSMTP   = ":25"
	maxNodeName   = 63
	maxSocketPath = 107 // unix(7): sun_path holds 108 bytes with the final NUL
	minMemory     = 16 * MiB
	adminSocket   = "admin.sock"
)

// Complete returns the effective configuration: the host's name for a missing
// one, the connector named "smtp" as the key smtp wants it, and each
// connector's defaults. It refuses nothing; that is Validate's work.
func (c Config) Complete() Config {
	if c.Name == "" {
		if host, err := os.Hostname(); err == nil {
			c.Name = strings.ToLower(host)
		}
	}
	c.Connectors = slices.Clone(c.Connectors)
	named := slices.IndexFunc(c.Connectors, func(k Connector) bool { return k.Name == smtpConnector })
	if named < 0 && (c.SMTP != "" || len(c.Connectors) == 0) {
		c.Connectors = slices.Insert(c.Connectors, 0, Connector{Name: smtpConnector})
		named = 0
	}
	if named >= 0 && c.SMTP != "" {
		c.Connectors[named].Listen = c.SMTP
	}
	for i := range c.Connectors {
		c.Connectors[i] = c.Connectors[i].complete()
	}
	c.Routes = slices.Clone(c.Routes)
	for i := range c.Routes {
		c.Routes[i] = c.Routes[i].complete()
	}
	if c.Role == RoleWitness {
		c.SMTP, c.Chain, c.Connectors, c.Routes = "", "", nil, nil
	}
	return c
}

func (r Route) complete() Route {
	r.TLS.Mode = cmp.Or(r.TLS.Mode, TLSStartTLS)
	r.Send = cmp.Or(r.Send, SendAll)
	r.From = cmp.Or(r.From, FromNow)
	r.Concurrency = cmp.Or(r.Concurrency, 4)
	return r
}

func (k Connector) complete() Connector {
	k.Kind = cmp.Or(k.Kind, KindSMTP)
	k.TLS.Mode = cmp.Or(k.TLS.Mode, TLSNone)
	k.Journal = cmp.Or(k.Journal, JournalNone)
	k.Auth.Mode = cmp.Or(k.Auth.Mode, AuthOff)
	if k.Listen == "" && k.Name == smtpConnector {
		k.Listen = defaultSMTP
	}
	return k
}
