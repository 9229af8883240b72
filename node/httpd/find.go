package httpd

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"

	"chainmail/archive"
	"chainmail/archive/mail"
	"chainmail/archive/record"
)

// item is what an ID names: a message as it was received, or the message
// inside one or several journal reports.
type item struct {
	hash     record.Hash
	size     int64
	receipts []record.Receipt // of all reports, earliest first
	reports  []record.Hash    // set for a message inside journal reports
}

// journal is what the archive knows of the message inside, when the item is a
// journal report or was found in one.
func (it item) journal() *record.Journal {
	for _, r := range it.receipts {
		if r.Envelope.Journal != nil {
			return r.Envelope.Journal
		}
	}
	return nil
}

// find resolves an ID. Reports of one inner message merge into one item.
func (s *Server) find(id string) (item, error) {
	hashes, err := s.opts.Archive.Resolve(id)
	if err != nil {
		return item{}, err // it names the ID
	}
	var it item
	for _, h := range hashes {
		m, err := s.opts.Archive.Message(h)
		if err != nil {
			return item{}, err
		}
		it.hash, it.size = m.Hash, m.Size
		it.receipts = append(it.receipts, m.Receipts...)
	}
	slices.SortStableFunc(it.receipts, byTime)
	if j := namedInside(id, it); j != nil {
		it.hash, it.size, it.reports = j.Inner, j.InnerSize, hashes
	}
	return it, nil
}

// namedInside returns the journal entry whose inner message the ID names, or
// nil when it names the item itself, by position or by hash.
func namedInside(id string, it item) *record.Journal {
	id = strings.ToLower(id)
	if strings.Contains(id, ":") || strings.HasPrefix(it.hash.String(), id) {
		return nil
	}
	if j := it.journal(); j != nil && strings.HasPrefix(j.Inner.String(), id) {
		return j
	}
	return nil
}

// open reads the bytes of an item, or those of the message inside it when
// inside is not nil. What it reads is checked: damage is an error from Read,
// at the latest in place of io.EOF.
func (s *Server) open(it item, inside *record.Journal) (io.ReadCloser, error) {
	stored := it.hash
	if len(it.reports) > 0 {
		stored = it.reports[0]
	}
	body, err := s.opts.Archive.Body(stored)
	if err != nil {
		return nil, err
	}
	if inside == nil {
		return body, nil
	}
	part, err := mail.Inner(body)
	if err != nil {
		_ = body.Close()
		return nil, fmt.Errorf("the message inside the journal report %s: %w", stored, err)
	}
	return &checkedPart{Reader: part, Closer: body, report: stored, want: inside.Inner, sum: sha256.New()}, nil
}

// checkedPart hashes the message inside a report as it is read, and turns
// io.EOF into an error when it is not the one that was archived.
type checkedPart struct {
	io.Reader
	io.Closer
	report, want record.Hash
	sum          hash.Hash
}

func (c *checkedPart) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.sum.Write(p[:n])
	switch {
	case err == nil:
		return n, nil
	case !errors.Is(err, io.EOF):
		return n, fmt.Errorf("the message inside the journal report %s: %w", c.report, err)
	case record.Hash(c.sum.Sum(nil)) != c.want:
		return n, fmt.Errorf("%w: the message inside the journal report %s has SHA-256 %x, archived as %s", archive.ErrCorrupt, c.report, c.sum.Sum(nil), c.want)
	default:
		return n, io.EOF
	}
}
