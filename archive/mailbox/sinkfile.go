package mailbox

import (
	"archive/zip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// mboxSink writes one mboxrd file.
type mboxSink struct {
	file   *partFile // nil when closed or discarded
	size   int64     // of the whole messages in it
	broken error
}

func newMboxSink(name string) (Sink, error) {
	f, err := newPartFile(name)
	if err != nil {
		return nil, err
	}
	return &mboxSink{file: f}, nil
}

func (s *mboxSink) Has(Meta) bool { return false }

func (s *mboxSink) Add(m Meta, r io.Reader) error {
	if s.broken != nil {
		return s.broken
	}
	if err := m.check(); err != nil {
		return err
	}
	err := writeMbox(s.file, m, r)
	if err == nil {
		s.size, err = s.file.Seek(0, io.SeekCurrent)
	}
	if err != nil {
		// Half a message would become part of the one before it.
		_, seekErr := s.file.Seek(s.size, io.SeekStart)
		s.broken = errors.Join(s.file.Truncate(s.size), seekErr)
		return errors.Join(err, s.broken)
	}
	return nil
}

// writeMbox writes one message in the form that the package comment draws.
func writeMbox(w io.Writer, m Meta, r io.Reader) error {
	if _, err := fmt.Fprintf(w, "From %s %s\n", fromLineSender(m.From), m.ReceivedAt.UTC().Format(time.ANSIC)); err != nil {
		return err
	}
	q := &requoter{w: w, mode: addQuote}
	if err := copyChecked(q, m, r); err != nil {
		return err
	}
	if err := q.Close(); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

// fromLineSender makes a reverse path fit for a From_ line, which is cut at
// spaces and must stay one line.
func fromLineSender(from string) string {
	from = strings.Map(func(r rune) rune {
		if r <= ' ' || r == 0x7f {
			return '_'
		}
		return r
	}, from[:min(len(from), 256)])
	if from == "" {
		return "MAILER-DAEMON"
	}
	return from
}

func (s *mboxSink) Close() error {
	f := s.file
	if f == nil {
		return nil
	}
	s.file, s.broken = nil, os.ErrClosed
	return f.complete()
}

func (s *mboxSink) Discard() {
	if s.file != nil {
		s.file.discard()
		s.file, s.broken = nil, os.ErrClosed
	}
}

const manifestName = "manifest.jsonl"

// manifestLine is one line of a zip file's manifest: what the archive knew of
// a message when it was exported.
type manifestLine struct {
	Path       string    `json:"path"`
	SHA256     string    `json:"sha256"`
	Size       int64     `json:"size"`
	ReceivedAt time.Time `json:"received_at"`
	From       string    `json:"from"`
	To         []string  `json:"to"`
}

// zipSink writes YYYY/MM/DD/<sha256>.eml by the day of receipt (UTC), and a
// manifest. An entry cannot be taken back out of a zip file, so each message
// passes through a temporary file beside it first, where it is checked.
type zipSink struct {
	file     *partFile // nil when closed or discarded
	zip      *zip.Writer
	spool    *os.File
	manifest *os.File
	broken   error
}

func newZipSink(name string) (Sink, error) {
	f, err := newPartFile(name)
	if err != nil {
		return nil, err
	}
	s := &zipSink{file: f, zip: zip.NewWriter(f)}
	var err1, err2 error
	s.spool, err1 = newSpool(filepath.Dir(name))
	s.manifest, err2 = newSpool(filepath.Dir(name))
	if err := errors.Join(err1, err2); err != nil {
		s.Discard()
		return nil, err
	}
	return s, nil
}

func (s *zipSink) Has(Meta) bool { return false }

func (s *zipSink) Add(m Meta, r io.Reader) error {
	if s.broken != nil {
		return s.broken
	}
	if err := m.check(); err != nil {
		return err
	}
	_, seekErr := s.spool.Seek(0, io.SeekStart)
	if err := errors.Join(seekErr, s.spool.Truncate(0)); err != nil {
		return err
	}
	if err := copyChecked(s.spool, m, r); err != nil {
		return err
	}
	s.broken = s.write(m)
	return s.broken
}

// write puts the message in the spool into the zip file. Should it fail, the
// zip file is of no use any more.
func (s *zipSink) write(m Meta) error {
	day := m.ReceivedAt.UTC()
	header := &zip.FileHeader{Name: day.Format("2006/01/02/") + m.SHA256 + ".eml", Method: zip.Deflate, Modified: day}
	header.SetMode(0o600)
	w, err := s.zip.CreateHeader(header)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, io.NewSectionReader(s.spool, 0, m.Size)); err != nil {
		return err
	}
	to := m.To
	if to == nil {
		to = []string{}
	}
	return json.NewEncoder(s.manifest).Encode(manifestLine{header.Name, m.SHA256, m.Size, day, m.From, to})
}

func (s *zipSink) Close() error {
	if s.file == nil {
		return nil
	}
	if s.broken != nil {
		err := s.broken
		s.Discard()
		return err
	}
	if err := s.end(); err != nil {
		s.Discard()
		return err
	}
	f := s.file
	s.file = nil
	s.release()
	return f.complete()
}

func (s *zipSink) end() error {
	header := &zip.FileHeader{Name: manifestName, Method: zip.Deflate}
	header.SetMode(0o600)
	w, err := s.zip.CreateHeader(header)
	if err != nil {
		return err
	}
	if _, err := s.manifest.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if _, err := io.Copy(w, s.manifest); err != nil {
		return err
	}
	return s.zip.Close()
}

func (s *zipSink) Discard() {
	if s.file != nil {
		s.file.discard()
		s.file = nil
		s.release()
	}
}

func (s *zipSink) release() {
	s.broken = os.ErrClosed
	for _, f := range []*os.File{s.spool, s.manifest} {
		if f != nil {
			f.Close()
		}
	}
}
