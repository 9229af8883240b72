package api

import "time"

// The verdicts on a cluster.
const (
	Green  = "green"  // every mail has all its copies and every member is well
	Yellow = "yellow" // no mail is in danger yet, but something needs time or care
	Red    = "red"    // mail has fewer copies than the policy, is refused or damaged
)

// The states of a member as another node sees it: those of package ring, and
// StateUnreachable.
const (
	StateJoining     = "joining"
	StateUnreachable = "unreachable"
)

// Cluster is the state of a cluster as one node sees it.
type Cluster struct {
	ID       string    `json:"id"`
	Node     string    `json:"node"` // who tells this
	Verdict  string    `json:"verdict"`
	Reasons  []string  `json:"reasons"` // why it is not green, the gravest first
	Epoch    uint64    `json:"epoch"`
	Leader   string    `json:"leader"` // empty: none is known, so nothing can be changed; mail flows all the same
	Voters   []string  `json:"voters"`
	Quorum   bool      `json:"quorum"`
	Policies Policies  `json:"policies"`
	Members  []Member  `json:"members"` // in the order of the ring, witnesses last
	Routes   []Route   `json:"routes,omitempty"`
	At       time.Time `json:"at"`
}

// Policies are what is the same on every node.
type Policies struct {
	Copies       int     `json:"copies"`
	Replicas     int     `json:"replicas"` // 0: all
	WhenShort    string  `json:"when_short"`
	AckTimeout   float64 `json:"ack_timeout_seconds"`
	BackfillRate int64   `json:"backfill_rate_bytes"` // a second; 0: no bound
	// Balancers are the IP addresses and CIDR blocks whose word on a client's
	// address is believed: by a PROXY header in SMTP, by X-Forwarded-For in HTTP.
	Balancers []string `json:"balancers"`
}

// PolicyChange sets those policies that are given.
type PolicyChange struct {
	Copies       *int     `json:"copies,omitempty"`
	Replicas     *int     `json:"replicas,omitempty"`
	WhenShort    *string  `json:"when_short,omitempty"`
	AckTimeout   *float64 `json:"ack_timeout_seconds,omitempty"`
	BackfillRate *int64   `json:"backfill_rate_bytes,omitempty"`
	// Balancers takes the place of the whole list; an empty one means none.
	Balancers *[]string `json:"balancers,omitempty"`
}

// Member is one member of a cluster.
type Member struct {
	Name      string            `json:"name"`
	Role      string            `json:"role"` // data or witness
	State     string            `json:"state"`
	Reason    string            `json:"reason,omitempty"`
	Version   string            `json:"version"`
	Addresses map[string]string `json:"addresses"` // smtp, chain, gossip, raft, http
	Voter     bool              `json:"voter"`
	Successor string            `json:"successor,omitempty"`
	Seen      time.Time         `json:"seen,omitzero"`      // when it last spoke with this node
	ClockSkew *float64          `json:"clock_skew_seconds"` // its clock minus this node's; null: unknown
	Backlog   *Backlog          `json:"backlog"`            // what it should hold and does not; null: unknown
	// OutOfReach counts the receipts that, as far as is known, only this member
	// holds while it is unreachable; null while it is reachable, or unknown.
	OutOfReach *uint64     `json:"out_of_reach"`
	Link       *Link       `json:"link,omitempty"`     // of this node to it
	Warnings   []string    `json:"warnings,omitempty"` // what differs from its peers: version, limits, clock
	Self       *SelfReport `json:"self,omitempty"`     // what it says of itself; absent when it does not answer
}

// Backlog is what a node should hold and does not.
type Backlog struct {
	Receipts uint64 `json:"receipts"`
	// Bytes of stored mail; null where not yet computed.
	Bytes *int64 `json:"bytes"`
	// Oldest is the time of the oldest such receipt; null where not known.
	Oldest *time.Time `json:"oldest"`
	// Lost counts receipts that no reachable member holds.
	Lost   uint64   `json:"lost"`
	LostAt []string `json:"lost_at,omitempty"` // "store:first-last", the first 100
}

// Link is a chain link to a peer.
type Link struct {
	State     string    `json:"state"` // connected, connecting, refused, disabled
	Since     time.Time `json:"since,omitzero"`
	Problem   string    `json:"problem,omitempty"`
	Feeding   bool      `json:"feeding"` // this node sends it what it lacks
	Receipts  uint64    `json:"sent_receipts"`
	Bytes     int64     `json:"sent_bytes"`
	ByteRate  float64   `json:"bytes_per_second"`
	RoundTrip float64   `json:"round_trip_seconds"`
}

// SelfReport is what a member tells its peers of itself.
type SelfReport struct {
	Node        string    `json:"node"`
	Version     string    `json:"version"`
	State       string    `json:"state"`
	Reason      string    `json:"reason,omitempty"`
	Store       string    `json:"store"`
	Epoch       uint64    `json:"epoch"`
	Time        time.Time `json:"time"`
	Receipts    uint64    `json:"receipts"`
	Messages    uint64    `json:"messages"`
	Bad         uint64    `json:"bad"`         // damaged receipts
	Quarantined uint64    `json:"quarantined"` // receipts whose position has two contents
	ShortNow    uint64    `json:"short_now"`   // own receipts that have fewer copies than the policy at present
	ShortEver   uint64    `json:"short_ever"`  // 250s given short since the node started
	// ToHandOver counts the receipts that a draining node holds and that some
	// of those who must keep them lack; null when it does not drain.
	ToHandOver *uint64   `json:"to_hand_over"`
	MaxMessage int64     `json:"max_message_bytes"`
	DiskFree   int64     `json:"disk_free_bytes"`
	Logs       []LogHeld `json:"logs"`
}

// LogHeld is what a node holds of one log.
type LogHeld struct {
	Store  string `json:"store"`
	Origin string `json:"origin"`
	Held   string `json:"held"` // such as "1-1000,1005"
}

// JoinRequest asks to be a member, over HTTP with TLS by the cluster's CA.
type JoinRequest struct {
	Token     string            `json:"token"`
	Name      string            `json:"name"`
	Role      string            `json:"role"`
	Replace   bool              `json:"replace,omitempty"`
	CSR       []byte            `json:"csr"` // PKCS #10, DER
	Addresses map[string]string `json:"addresses"`
	Version   string            `json:"version"`
}

// JoinToken is a secret that lets one node join.
type JoinToken struct {
	Token     string    `json:"token"`
	ExpiresAt time.Time `json:"expires_at"`
}

// JoinTokenRequest asks for one.
type JoinTokenRequest struct {
	ValidSeconds int64 `json:"valid_seconds,omitempty"` // 0: one hour
}

// MoveRequest gives a member another place in the ring.
type MoveRequest struct {
	After string `json:"after"`
}

// Changed answers a change of the cluster.
type Changed struct {
	Epoch   uint64 `json:"epoch"`
	Message string `json:"message"` // what happens now, for people
}

// SafeToStop answers whether a member may be stopped for a while.
type SafeToStop struct {
	Name    string   `json:"name"`
	Safe    bool     `json:"safe"`
	Reasons []string `json:"reasons"` // why not
}

// Route is the state of one route to a foreign mail server.
type Route struct {
	Name    string     `json:"name"`
	Target  string     `json:"target"`
	State   string     `json:"state"` // sending, idle, retrying, stopped
	Problem string     `json:"problem,omitempty"`
	Next    *time.Time `json:"next_attempt,omitempty"`
	Sent    uint64     `json:"sent"` // since the node started
	Backlog uint64     `json:"backlog"`
	Oldest  *time.Time `json:"oldest"`
	// Deferred mails of the backlog wait for another attempt; Unreadable ones of
	// those cannot be read from this node's archive.
	Deferred   uint64 `json:"deferred"`
	Unreadable uint64 `json:"unreadable"`
	Parked     uint64 `json:"parked"` // refused for good; see chainmail route parked
}

// Parked is a receipt that a route's target refused for good.
type Parked struct {
	Position string `json:"position"`
	SHA256   string `json:"sha256"`
	// Recipients that it is owed to, where the target took it for others; absent
	// for all.
	Recipients []string  `json:"recipients,omitempty"`
	Reply      string    `json:"reply"`
	At         time.Time `json:"at"`
	Attempts   int       `json:"attempts"`
}

// ClusterVerifyEvent is one line of the stream of a verification of all
// replicas.
type ClusterVerifyEvent struct {
	Log     string   `json:"log,omitempty"` // store
	Node    string   `json:"node,omitempty"`
	Checked uint64   `json:"checked"` // receipts compared so far, over all replicas
	Total   uint64   `json:"total"`
	Problem string   `json:"problem,omitempty"`
	At      []string `json:"at,omitempty"` // positions that differ
	Done    bool     `json:"done,omitempty"`
	Bad     uint64   `json:"bad"`
	Error   string   `json:"error,omitempty"`
}

// Segment is the digest of a stretch of a log, receipts n*1024+1 … (n+1)*1024,
// as far as a node holds it.
type Segment struct {
	Segment  uint64 `json:"segment"` // n
	Digest   string `json:"digest"`  // hexadecimal
	Receipts int    `json:"receipts"`
	Bytes    int64  `json:"bytes"` // of the bodies
	Held     string `json:"held"`  // such as "1-1000,1005"
}

// ReceiptDigest is the digest of one receipt and its body.
type ReceiptDigest struct {
	Seq    uint64 `json:"seq"`
	Digest string `json:"digest"` // hexadecimal
}

// Digests is what a node holds of a log: of a segment, or receipt by receipt.
type Digests struct {
	Log      string          `json:"log"` // store
	Segment  *Segment        `json:"segment,omitempty"`
	Receipts []ReceiptDigest `json:"receipts,omitempty"` // in their order; what is missing is not held
}

// RouteList is every route of a node.
type RouteList struct {
	Routes []Route `json:"routes"`
}

// ParkedList is what a route's target refused for good.
type ParkedList struct {
	Parked []Parked `json:"parked"`
}

// RetryRequest sends parked receipts again.
type RetryRequest struct {
	Positions []string `json:"positions"` // none: all
}

// Retried answers it.
type Retried struct {
	Retried int `json:"retried"` // receipts
}
