// Package api holds the JSON forms that a node speaks over HTTP and that the
// commands print with -o json. They are the product's contract with programs:
// fields are added, never renamed or removed within v1.
package api

import "time"

// Prefix is where version 1 of the interface lives.
const Prefix = "/api/v1"

// NodeName is the DNS name in the certificates of all members of a cluster:
// balancers and programs that know the cluster's CA ask for it by SNI and
// verify it, whichever node they reach. It is in no DNS.
const NodeName = "node.chainmail.internal"

// Message is one archived message with every receipt of it.
type Message struct {
	SHA256     string    `json:"sha256"`
	Size       int64     `json:"size"`        // bytes
	ReceivedAt time.Time `json:"received_at"` // of the first receipt
	Subject    string    `json:"subject,omitempty"`
	Receipts   []Receipt `json:"receipts"`
	// Reports names the journal reports that hold this message, when it was
	// asked for by the SHA-256 of the message inside them.
	Reports []string `json:"reports,omitempty"`
	// Headers are the parsed header fields in their order, for a journal report
	// those of the message inside it; only from messages/{id}.
	Headers []Header `json:"headers,omitempty"`
	// Problem says why the headers could not be read from the stored bytes; only
	// from messages/{id}.
	Problem string `json:"problem,omitempty"`
}

// Header is one header field, unfolded and decoded to UTF-8.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Receipt is one acceptance of a message.
type Receipt struct {
	Position   string    `json:"position"`
	ReceivedAt time.Time `json:"received_at"`
	From       string    `json:"from"`
	To         []string  `json:"to"`
	Client     string    `json:"client"`
	Helo       string    `json:"helo,omitempty"`
	TLS        string    `json:"tls,omitempty"`
	User       string    `json:"user,omitempty"`
	Connector  string    `json:"connector"`
	Journal    *Journal  `json:"journal,omitempty"`
}

// Journal is what a journal report says of the message inside it.
type Journal struct {
	InnerSHA256 string             `json:"inner_sha256"`
	InnerSize   int64              `json:"inner_size"`
	Sender      string             `json:"sender,omitempty"`
	Subject     string             `json:"subject,omitempty"`
	MessageID   string             `json:"message_id,omitempty"`
	OnBehalfOf  string             `json:"on_behalf_of,omitempty"`
	Recipients  []JournalRecipient `json:"recipients"`
}

// JournalRecipient is one recipient line of a journal report.
type JournalRecipient struct {
	Address   string `json:"address"`
	Role      string `json:"role"`
	Expanded  string `json:"expanded,omitempty"`
	Forwarded string `json:"forwarded,omitempty"`
}

// MessageList is one page of messages, oldest first.
type MessageList struct {
	Messages []Message `json:"messages"`
	// Next is the value of "after" that asks for the following page; empty
	// when this page is the last.
	Next string `json:"next,omitempty"`
}

// Accepted answers an import.
type Accepted struct {
	SHA256   string `json:"sha256"`
	Position string `json:"position"` // of the first receipt
	Existing bool   `json:"existing"` // true: the archive held these bytes already (perhaps inside a journal report), nothing was added
}

// The states of a node.
const (
	StateStarting = "starting" // not all listeners are up yet
	StateActive   = "active"   // takes mail
	StateFull     = "full"     // free space is below the minimum: new mail gets 452
	StateDraining = "draining" // shutting down: new mail gets 421
)

// Health answers /healthz and /readyz.
type Health struct {
	State  string `json:"state"` // one of the states of a node
	Reason string `json:"reason,omitempty"`
}

// Sync answers /syncz: does the node hold all that it should?
type Sync struct {
	InSync bool `json:"in_sync"`
	// Lacks counts the receipts that it should hold and does not; null while that
	// is not known.
	Lacks *uint64 `json:"lacks"`
	// Lost are those of them that no reachable member holds.
	Lost   uint64 `json:"lost"`
	Reason string `json:"reason,omitempty"` // why it is not in sync
}

// Status is the state of one node.
type Status struct {
	Node       string     `json:"node"`
	Version    string     `json:"version"`
	Store      string     `json:"store"`
	State      string     `json:"state"` // one of the states above
	Reason     string     `json:"reason,omitempty"`
	StartedAt  time.Time  `json:"started_at"`
	DataDir    string     `json:"data_dir"`
	Receipts   uint64     `json:"receipts"`
	Messages   uint64     `json:"messages"`
	RawBytes   int64      `json:"raw_bytes"`    // of the messages as received, each once
	StoredSize int64      `json:"stored_bytes"` // what the archive takes on disk
	Disk       Disk       `json:"disk"`
	Memory     Memory     `json:"memory"`
	Scrub      Scrub      `json:"scrub"`
	Listeners  []Listener `json:"listeners"`
	// Conflicts are positions for which two contents came: the first 100.
	Conflicts []Conflict `json:"conflicts,omitempty"`
}

// Disk is the free space that decides whether mail is taken.
type Disk struct {
	Free    int64 `json:"free_bytes"`
	MinFree int64 `json:"min_free_bytes"` // below this new mail gets 452
}

// Memory is the bounded memory for mail that is being received.
type Memory struct {
	InFlight int64 `json:"in_flight_bytes"`
	Limit    int64 `json:"limit_bytes"`
}

// Scrub is the background check of every stored body.
type Scrub struct {
	StartedAt  time.Time `json:"started_at,omitzero"`  // of the running pass
	FinishedAt time.Time `json:"finished_at,omitzero"` // of the last whole pass
	Checked    uint64    `json:"checked"`              // receipts in the running pass
	Total      uint64    `json:"total"`
	Bad        uint64    `json:"bad"`      // receipts known to be damaged
	Findings   []Finding `json:"findings"` // the first 100 of them
}

// Finding is one receipt that cannot be read whole.
type Finding struct {
	Position string    `json:"position"`
	SHA256   string    `json:"sha256,omitempty"` // empty when the receipt itself is unreadable
	Problem  string    `json:"problem"`
	FoundAt  time.Time `json:"found_at"`
}

// Conflict is a position for which a peer sent another receipt than the one
// held: somebody's disk was set back. The mail was kept under a position of
// its own.
type Conflict struct {
	Position string    `json:"position"`
	Held     string    `json:"held"`    // SHA-256 of the message held there
	Refused  string    `json:"refused"` // SHA-256 of the message that came
	Peer     string    `json:"peer"`
	At       time.Time `json:"at"`
	Kept     string    `json:"kept"` // the position under which the refused mail was archived
}

// Listener is one address that takes mail.
type Listener struct {
	Name        string `json:"name"`
	Kind        string `json:"kind"` // "smtp" or "lmtp"
	Address     string `json:"address"`
	Connections int    `json:"connections"`
}

// VerifyEvent is one line of the stream that a verification sends: progress
// lines while it runs, a line for each finding, and a last line with Done.
type VerifyEvent struct {
	Checked uint64   `json:"checked"`
	Total   uint64   `json:"total"`
	Bytes   int64    `json:"bytes"` // of message text read and hashed so far
	Finding *Finding `json:"finding,omitempty"`
	Done    bool     `json:"done,omitempty"`
	Bad     uint64   `json:"bad"` // findings so far
	// Error says why the verification ended early; such a line is the last one
	// and has no Done.
	Error string `json:"error,omitempty"`
}

// The scopes of API tokens.
const (
	ScopeRead    = "read"    // all that can be read over HTTP, mail included
	ScopeCluster = "cluster" // the cluster's members and how they are, and no mail
)

// Token describes one API token; the secret itself is shown once, when made.
// It works on every node of the cluster.
type Token struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Scope     string    `json:"scope"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at,omitzero"`
	Secret    string    `json:"secret,omitempty"`
}

// TokenRequest asks for a new API token.
type TokenRequest struct {
	Name      string    `json:"name"`                // who or what will use it, for people
	Scope     string    `json:"scope,omitempty"`     // one of the scopes; absent: read
	ExpiresAt time.Time `json:"expires_at,omitzero"` // in the future; absent: never
}

// TokenList is every API token there is, those included that expired lately.
type TokenList struct {
	Tokens []Token `json:"tokens"`
}

// Error is the body of every answer with a status of 400 and above.
type Error struct {
	Error string `json:"error"`          // what failed, with which value
	Hint  string `json:"hint,omitempty"` // what to do
}
