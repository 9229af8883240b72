// Package record defines the words of the archive: hashes, stores, positions,
// envelopes and receipts, and the bytes in which a receipt is kept for ever.
//
// It holds plain values and pure functions only, so that every other package
// may speak these words without depending on a database or a network.
package record

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Hash is the SHA-256 of a message's exact bytes: its identity everywhere.
type Hash [sha256.Size]byte

// ParseHash reads the 64 hexadecimal digits that String prints, in any case.
func ParseHash(s string) (Hash, error) {
	var h Hash
	if len(s) != hex.EncodedLen(len(h)) {
		return Hash{}, fmt.Errorf("%q is not a SHA-256: want %d hexadecimal digits, got %d characters", s, hex.EncodedLen(len(h)), len(s))
	}
	if _, err := hex.Decode(h[:], []byte(s)); err != nil {
		return Hash{}, fmt.Errorf("%q is not a SHA-256: %w", s, err)
	}
	return h, nil
}

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// IsZero reports whether h is the zero value, which no message has.
func (h Hash) IsZero() bool { return h == Hash{} }

// MarshalText and UnmarshalText make JSON and flags use the printed form.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

func (h *Hash) UnmarshalText(b []byte) (err error) {
	*h, err = ParseHash(string(b))
	return err
}

// StoreID is the random identity of one data directory's life. A directory
// that is created, restored or found behind its peers gets a new one, so that
// no position is ever used twice.
type StoreID uint64

func (s StoreID) String() string { return fmt.Sprintf("%016x", uint64(s)) }

// MarshalText and UnmarshalText make JSON use the printed form.
func (s StoreID) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func (s *StoreID) UnmarshalText(b []byte) error {
	v, err := ParseStoreID(string(b))
	*s = v
	return err
}

// ParseStoreID reads the 16 hexadecimal digits that String prints.
func ParseStoreID(s string) (StoreID, error) {
	v, err := strconv.ParseUint(s, 16, 64)
	if err != nil || len(s) != 16 {
		return 0, fmt.Errorf("%q is not a store identity: want 16 hexadecimal digits", s)
	}
	return StoreID(v), nil
}

// Seq numbers the receipts of one log: dense, from 1.
type Seq uint64

func (s Seq) String() string { return strconv.FormatUint(uint64(s), 10) }

// BodyNo numbers the stored bodies of one log. It grows, but unlike Seq it has
// gaps: a number given to a body that was never acknowledged is not used again.
type BodyNo uint64

// Position names a receipt for ever: the store that accepted it first, and its
// sequence in that store's log. It prints as "<16 hex digits>:<sequence>".
type Position struct {
	Store StoreID
	Seq   Seq
}

var errPosition = errors.New("a position is 16 hexadecimal digits, a colon and a number from 1, for example 4f2a9c1be0d37786:42")

// ParsePosition reads what Position.String prints.
func ParsePosition(s string) (Position, error) {
	store, seq, ok := strings.Cut(s, ":")
	if !ok || len(store) != 16 {
		return Position{}, fmt.Errorf("%q: %w", s, errPosition)
	}
	st, err1 := strconv.ParseUint(store, 16, 64)
	n, err2 := strconv.ParseUint(seq, 10, 64)
	if err1 != nil || err2 != nil || n == 0 {
		return Position{}, fmt.Errorf("%q: %w", s, errPosition)
	}
	return Position{StoreID(st), Seq(n)}, nil
}

func (p Position) String() string { return p.Store.String() + ":" + p.Seq.String() }

// Compare orders positions by store, then by sequence.
func (p Position) Compare(q Position) int {
	return cmp.Or(cmp.Compare(p.Store, q.Store), cmp.Compare(p.Seq, q.Seq))
}

func (p Position) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

func (p *Position) UnmarshalText(b []byte) (err error) {
	*p, err = ParsePosition(string(b))
	return err
}

// Envelope is what the transport said about one acceptance of a message.
// Everything in it is as the client gave it; nothing is normalised.
type Envelope struct {
	From      string   // reverse path without angle brackets; empty for <>
	To        []string // forward paths in the order given, without angle brackets
	Client    string   // address of the client, "192.0.2.1:40312"; a path or empty for local ones
	Helo      string   // the name given with HELO, EHLO or LHLO
	TLS       string   // for example "TLS1.3 TLS_AES_128_GCM_SHA256"; empty for plain text
	User      string   // who authenticated; empty for nobody
	Connector string   // name of the listener, or "import"
	Journal   *Journal // set when the message is a journal report that was understood
}

// Journal is what an Exchange or Microsoft 365 journal report says of the
// message inside it.
type Journal struct {
	Inner      Hash  // SHA-256 of the message inside, byte for byte as attached; zero when it is protected and cannot be read
	InnerSize  int64 // its length in bytes
	Sender     string
	Subject    string
	MessageID  string
	OnBehalfOf string
	Recipients []JournalRecipient // in the order of the report
}

// JournalRecipient is one recipient line of a journal report.
type JournalRecipient struct {
	Address   string
	Role      string // "To", "Cc", "Bcc" or "Recipient", as the line is called
	Expanded  string // the distribution list this address came from, or empty
	Forwarded string // the mailbox that forwarded to this address, or empty
}

// Receipt is one entry of a log: one acceptance of one message.
type Receipt struct {
	Position   Position
	ReceivedAt time.Time // UTC, nanoseconds
	Hash       Hash
	Size       int64  // of the message, in bytes
	Body       BodyNo // where this log keeps the message's bytes
	Envelope   Envelope
}

// Message is one message with every receipt of it that the node holds, the
// earliest first.
type Message struct {
	Hash     Hash
	Size     int64
	Receipts []Receipt
}

// ReceivedAt is the time of the first receipt.
func (m Message) ReceivedAt() time.Time { return m.Receipts[0].ReceivedAt }
