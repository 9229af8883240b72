package chain

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chainmail/archive/record"
	"chainmail/membership/ring"
)

// What an Archive's errors say; test with errors.Is.
var (
	// ErrFull: no mail is taken because the disk is nearly full.
	ErrFull = errors.New("disk is nearly full")
	// ErrBusy: there is no memory for incoming mail at present.
	ErrBusy = errors.New("busy")
	// ErrCorrupt: bytes are not what their hash says. From Export and Chunks
	// it is about the node's own disk, from an Intake about what came in.
	ErrCorrupt = errors.New("corrupt")
	// ErrNotHeld: the receipt is not, or no longer, held.
	ErrNotHeld = errors.New("not held")
	// ErrNoBody: a receipt came without its body, which is not held here.
	ErrNoBody = errors.New("the body is not held here")
)

// Logs is what a node holds. Its methods are cheap and may be called from any
// goroutine.
type Logs interface {
	// Store names the node's own log.
	Store() record.StoreID
	// Logs are all logs of which the node holds or knows something, with what
	// is durable and, as far as is known, undamaged.
	Logs() []record.Log
	Log(record.StoreID) (record.Log, bool)
	// Changed is closed at the next change of any log.
	Changed() <-chan struct{}
	// Learn notes origin and placements of a log as a peer tells them.
	Learn(record.Log) error
	// Place notes who keeps the own log's receipts from the next one on.
	Place(nodes []string) error
}

// Mail moves receipts out of and into an archive.
type Mail interface {
	// Export reads a receipt to be sent: ErrNotHeld, ErrCorrupt.
	Export(record.Position) (Exported, error)
	// Chunks reads a body in its stored form; the slices are f's only during
	// the call. ErrCorrupt.
	Chunks(s record.StoreID, b record.BodyNo, f func(stored []byte) error) error
	// NewIntake begins to take receipts from a peer. ctx ends its waiting.
	NewIntake(ctx context.Context, peer string) Intake
	// Accepting is nil while mail is taken, or says why it is not.
	Accepting() error
	// Weigh adds up the bytes of the receipts of a range that are held, and
	// finds the time of the oldest. It reads the disk.
	Weigh(record.StoreID, record.Range) (bytes int64, oldest time.Time, err error)
}

// Archive is what the chain needs of the node's archive.
type Archive interface {
	Logs
	Mail
}

// Exported is a receipt on its way out.
type Exported struct {
	Receipt record.Receipt
	Encoded []byte // as record.AppendReceipt made it
	// BodyAt is the first receipt of the same log with this body: who holds
	// that one holds the body.
	BodyAt record.Position
}

// Intake takes one container of receipts. Log, Receipt and Chunk are called in
// the order of the container, then Enter, then Sync; or Discard, which after
// Sync does nothing. It serves one goroutine at a time.
type Intake interface {
	// Log notes origin and placements of a log.
	Log(record.Log) error
	// Receipt begins a receipt, after ending the one before it. Where want is
	// false it is held already, or being taken elsewhere, and its chunks are
	// not asked for. With ErrNoBody the receipt is left out and the intake goes
	// on; every other error is final, and ErrCorrupt is about the receipt
	// before.
	Receipt(p record.Position, encoded []byte, hasBody bool) (want bool, err error)
	// Chunk is the next part of the body of the last receipt, as stored.
	Chunk(stored []byte) error
	// Enter ends the last receipt and gives everything to the database.
	Enter() error
	// Sync waits until all of it is on disk; then Logs shows it.
	Sync() ([]record.StoreID, error)
	// Discard forgets what was not entered.
	Discard()
}

// Options are what a Chain needs. All fields but Alive, Damaged, Logger,
// Registerer and MaxMessage must be set.
type Options struct {
	Name    string // of this node
	Version string // of the program, shown to peers
	Cluster string // identity of the cluster
	Archive Archive
	// View is the committed state of the cluster. It must be cheap; Wake says
	// when it changed.
	View func() ring.View
	// Alive is gossip's opinion of a member; nil: all are alive. It decides
	// nothing alone: a member that is thought dead is asked at once by the
	// link, and routed around until it answers.
	Alive func(name string) bool
	// Damaged is told of a receipt whose body could not be read to be sent;
	// nil: nobody. When the archive finds the same and leaves it out of what
	// it holds, the peers give it back.
	Damaged func(record.Position)
	// ClientTLS is the configuration for a connection to a peer: it must make
	// sure that the other end is that peer.
	ClientTLS  func(peer string) *tls.Config
	Dial       func(ctx context.Context, address string) (net.Conn, error)
	MaxMessage int64 // largest message that clients may hand in, in bytes; shown to peers
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: metrics are counted but not shown
}

func (o *Options) settle() error {
	for _, missing := range []struct {
		what string
		is   bool
	}{
		{"Name", o.Name == ""},
		{"Cluster", o.Cluster == ""},
		{"Archive", o.Archive == nil},
		{"View", o.View == nil},
		{"ClientTLS", o.ClientTLS == nil},
		{"Dial", o.Dial == nil},
	} {
		if missing.is {
			return errors.New("chain: Options." + missing.what + " is missing")
		}
	}
	if o.Alive == nil {
		o.Alive = func(string) bool { return true }
	}
	if o.Damaged == nil {
		o.Damaged = func(record.Position) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// The times and sizes of the link. They are the same on every node, so they
// are no settings.
const (
	pollEvery    = time.Second            // how often a peer is asked for its holdings
	pollGap      = 100 * time.Millisecond // between two polls, if it answers at once
	patience     = 2 * time.Second        // a reply may take this long …
	slowest      = 1_000_000              // … and a second more for each this many bytes
	connectTime  = 5 * time.Second        // for dialling, TLS and the greeting
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 5 * time.Second
	keepalive    = 15 * time.Second // after which an idle lane is tried
	idleTime     = time.Minute      // after which a server lets a silent peer go
	farewell     = time.Second      // for polite words at the end
	standby      = 2 * time.Second  // what the i-th standby waits i times
	asideShort   = time.Second      // until a receipt that was not taken is tried again
	asideLong    = time.Minute      // the same, for one that is damaged
	bulkYield    = 250 * time.Millisecond
	eagerPause   = 2 * time.Millisecond // between two replies to eager hellos
)
