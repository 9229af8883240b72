package mailbox

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

var (
	// ErrExists means that a sink would have to overwrite something.
	ErrExists = errors.New("exists already")
	// ErrAltered means that the bytes of a message are not the ones that its
	// metadata names. Nothing of it is left in the output.
	ErrAltered = errors.New("altered message")
)

// Meta is what a sink needs to know of a message beside its bytes.
type Meta struct {
	SHA256     string    // 64 lower-case hexadecimal digits
	Size       int64     // bytes
	ReceivedAt time.Time // of the first receipt
	From       string    // envelope sender, may be empty
	To         []string  // envelope recipients
}

// Sink takes messages one after the other. Not safe for concurrent use.
type Sink interface {
	// Has reports whether the message is in the output already, from an
	// earlier export into the same folder, so that it need not be fetched.
	// Sinks that write one file begin anew and always say no.
	Has(m Meta) bool
	// Add writes one message; in a folder, one that is there already is left
	// alone. The caller adds each message once. After an error from r or ErrAltered the message is not in the output and the
	// sink goes on; after others there is no point in going on.
	Add(m Meta, r io.Reader) error
	// Close completes the output: only now a file has its final name.
	Close() error
	// Discard removes an unfinished file. It does nothing after Close, so it
	// can always be deferred; messages in folders stay, for the next attempt.
	Discard()
}

// Format is how a sink lays mail out.
type Format string

const (
	EML     Format = "eml"     // OUT is a folder of <sha256>.eml
	MboxOut Format = "mbox"    // OUT is a file, mboxrd
	Maildir Format = "maildir" // OUT is a Maildir
	Zip     Format = "zip"     // OUT is a file, with EML files by date and manifest.jsonl
)

// Create makes a sink. Folders are made when they are missing, and an export
// into one goes on where an earlier one ended; a file must not exist.
func Create(f Format, out string) (Sink, error) {
	switch f {
	case EML:
		return newEMLSink(out)
	case MboxOut:
		return newMboxSink(out)
	case Maildir:
		return newMaildirSink(out)
	case Zip:
		return newZipSink(out)
	}
	return nil, fmt.Errorf("%q is no export format: use eml, mbox, maildir or zip", f)
}

// check refuses metadata that would become a strange file name.
func (m Meta) check() error {
	if b, err := hex.DecodeString(m.SHA256); err != nil || len(b) != sha256.Size || m.SHA256 != strings.ToLower(m.SHA256) {
		return fmt.Errorf("%q is not the SHA-256 of a message: want 64 lower-case hexadecimal digits", m.SHA256)
	}
	return nil
}

// copyChecked copies a message and makes sure that it is the one m names.
func copyChecked(w io.Writer, m Meta, r io.Reader) error {
	digest := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, digest), r)
	if err != nil {
		return fmt.Errorf("message %s: %w", m.SHA256, err)
	}
	if got := hex.EncodeToString(digest.Sum(nil)); got != m.SHA256 || n != m.Size {
		return fmt.Errorf("%w %s of %d bytes: read %d bytes with SHA-256 %s", ErrAltered, m.SHA256, m.Size, n, got)
	}
	return nil
}

// sameFile reports whether the file exists and holds the message.
func sameFile(name string, m Meta) bool {
	info, err := os.Lstat(name)
	if err != nil || !info.Mode().IsRegular() || info.Size() != m.Size {
		return false
	}
	f, err := os.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	return copyChecked(io.Discard, m, f) == nil
}

// publish gives a complete file its name, and never replaces another one:
// unlike rename, link fails when the name is taken.
func publish(temp, name string) error {
	err := os.Link(temp, name)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s %w: move it away or choose another name", name, ErrExists)
	}
	if err == nil {
		return os.Remove(temp)
	}
	if _, statErr := os.Lstat(name); statErr == nil { // a file system without links
		return fmt.Errorf("%s %w: move it away or choose another name", name, ErrExists)
	}
	return os.Rename(temp, name)
}

const (
	partialPrefix = ".partial-"
	partialSuffix = ".partial"
)

// isPartial knows the files of an export that was killed.
func isPartial(name string) bool {
	return strings.HasPrefix(name, partialPrefix) || strings.HasSuffix(name, partialSuffix)
}

// partFile is a single output file while it is written, under a name that
// shows that it is not complete.
type partFile struct {
	*os.File
	name string // the final one
}

func newPartFile(name string) (*partFile, error) {
	if _, err := os.Lstat(name); err == nil {
		return nil, fmt.Errorf("%s %w: move it away or choose another name", name, ErrExists)
	}
	f, err := os.OpenFile(name+partialSuffix, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%s %w: another export is writing it, or was interrupted; remove it if none is running", name+partialSuffix, ErrExists)
	}
	if err != nil {
		return nil, err
	}
	return &partFile{f, name}, nil
}

func (p *partFile) complete() error {
	if err := errors.Join(p.Sync(), p.File.Close()); err != nil {
		os.Remove(p.File.Name())
		return err
	}
	return publish(p.File.Name(), p.name)
}

func (p *partFile) discard() {
	p.File.Close()
	os.Remove(p.File.Name())
}

// newSpool makes a temporary file that is gone when it is closed, or when the
// process ends in any way.
func newSpool(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, ".chainmail-*")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

// ensureDir makes a folder of private mail.
func ensureDir(dir string) error {
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		return fmt.Errorf("%s %w and is not a folder: choose another name", filepath.Clean(dir), ErrExists)
	}
	return os.MkdirAll(dir, 0o700)
}
