package archive

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

var (
	// ErrNotFound: no message has this ID.
	ErrNotFound = errors.New("no such message")
	// ErrAmbiguous: several messages begin with this prefix.
	ErrAmbiguous = errors.New("prefix of several messages: give more digits")
	// ErrBadID: the ID has no form that an ID can have.
	ErrBadID = errors.New("not an ID: want a SHA-256, its first 4 or more digits, or a position such as 4f2a9c1be0d37786:42")
	// ErrBusy: all memory for incoming mail was in use for MemoryWait.
	ErrBusy = errors.New("all memory for incoming mail is in use")
	// ErrDiskFull: free space is below MinFree, so no mail is taken.
	ErrDiskFull = errors.New("disk is nearly full")
	// ErrClosed: the archive was closed, or a failed write has ended it.
	ErrClosed = errors.New("archive is closed")
	// ErrCorrupt: stored bytes are not what was stored.
	ErrCorrupt = errors.New("corrupt")
	// ErrAhead: a peer gave a receipt of the own log that was never made here.
	ErrAhead = errors.New("a peer knows more of this log than this node: its disk was rolled back; restart the node so that it starts a new log")
	// ErrNoBody: a receipt came without a body that this node does not hold.
	ErrNoBody = errors.New("the body is not held here: send it with the receipt")
)

// isDamage reports whether an error is about rotten bytes, not about a disk
// that cannot be used or a program that cannot go on.
func isDamage(err error) bool {
	return errors.Is(err, ErrCorrupt) || err != nil && pebble.IsCorruptionError(err)
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
}
