package archive

import (
	"errors"
	"fmt"
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
)

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
}
