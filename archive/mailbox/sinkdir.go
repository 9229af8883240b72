package mailbox

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// emlSink writes DIR/<sha256>.eml.
type emlSink struct{ dir string }

func newEMLSink(dir string) (Sink, error) {
	if err := ensureDir(dir); err != nil {
		return nil, err
	}
	return &emlSink{dir}, nil
}

func (s *emlSink) path(m Meta) string { return filepath.Join(s.dir, m.SHA256+".eml") }

func (s *emlSink) Has(m Meta) bool { return m.check() == nil && sameFile(s.path(m), m) }

func (s *emlSink) Add(m Meta, r io.Reader) error {
	if err := m.check(); err != nil {
		return err
	}
	return addFile(s.dir, s.path(m), m, r)
}

func (s *emlSink) Close() error { return nil }
func (s *emlSink) Discard()     {}

// addFile writes a message to a temporary file in the folder temp and gives it
// its name when it is complete. The same message under that name is left alone.
func addFile(temp, name string, m Meta, r io.Reader) error {
	if _, err := os.Lstat(name); err == nil {
		if sameFile(name, m) {
			return nil
		}
		return fmt.Errorf("%s %w with other content: move it away, or export to an empty folder", name, ErrExists)
	}
	f, err := os.CreateTemp(temp, partialPrefix+"*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	err = copyChecked(f, m, r)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	// IMAP servers show a file's time as the date of arrival.
	if err := os.Chtimes(f.Name(), m.ReceivedAt, m.ReceivedAt); err != nil {
		return err
	}
	return publish(f.Name(), name)
}

// maildirSink delivers into a Maildir as its specification asks: a file is
// written in tmp and moved to new. The unique name is made of the message's
// hash, so that a second export of it finds the first.
type maildirSink struct{ dir string }

func newMaildirSink(dir string) (Sink, error) {
	if err := ensureDir(dir); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	if len(entries) > 0 && !isMaildir(dir) {
		return nil, fmt.Errorf("%s %w and is no Maildir: choose another name or an empty folder", dir, ErrExists)
	}
	for _, sub := range []string{"tmp", "new", "cur"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, err
		}
	}
	return &maildirSink{dir}, nil
}

func (s *maildirSink) name(m Meta) string {
	return fmt.Sprintf("%d.%s.chainmail", m.ReceivedAt.Unix(), m.SHA256)
}

// Has also finds a message that a mail reader has seen and moved to cur,
// unless it was given more than that one flag.
func (s *maildirSink) Has(m Meta) bool {
	if m.check() != nil {
		return false
	}
	name := s.name(m)
	for _, place := range []string{"new/" + name, "cur/" + name + ":2,S", "cur/" + name + ":2,", "cur/" + name} {
		if sameFile(filepath.Join(s.dir, place), m) {
			return true
		}
	}
	return false
}

func (s *maildirSink) Add(m Meta, r io.Reader) error {
	if err := m.check(); err != nil {
		return err
	}
	if s.Has(m) {
		return nil
	}
	return addFile(filepath.Join(s.dir, "tmp"), filepath.Join(s.dir, "new", s.name(m)), m, r)
}

func (s *maildirSink) Close() error { return nil }
func (s *maildirSink) Discard()     {}
