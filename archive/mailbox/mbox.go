package mailbox

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// Mbox is one of the ways to tell messages in one file apart.
type Mbox string

const (
	// MboxAuto begins a message at each line "From " that has a date, and
	// takes one ">" off lines that match ^>+From_, unless the message proves
	// that it was not quoted: it holds a bare "From " line, and Content-Length
	// agrees with its length. It never believes Content-Length beyond that,
	// since its value is the sender's word: a message could swallow the next.
	MboxAuto Mbox = "auto"
	MboxO    Mbox = "mboxo"   // ">" before "From " only
	MboxRD   Mbox = "mboxrd"  // ">" before ">*From "; what Create writes
	MboxCL   Mbox = "mboxcl"  // Content-Length, and quoted like mboxrd
	MboxCL2  Mbox = "mboxcl2" // Content-Length, and nothing quoted
)

// ParseMbox reads a variant's name; the empty string is MboxAuto.
func ParseMbox(s string) (Mbox, error) {
	switch m := Mbox(strings.ToLower(s)); m {
	case "":
		return MboxAuto, nil
	case MboxAuto, MboxO, MboxRD, MboxCL, MboxCL2:
		return m, nil
	}
	return "", fmt.Errorf("%q is no mbox variant: use auto, mboxo, mboxrd, mboxcl or mboxcl2", s)
}

// fromDate finds the date in a From_ line: "Tue May 14 09:30:00 2024" and its
// many relatives.
var fromDate = regexp.MustCompile(`(?i) (mon|tue|wed|thu|fri|sat|sun),?\s+(\d{1,2}\s+)?(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)\s.*\d{1,2}:\d{2}`)

// span is where one message lies in an mbox file.
type span struct {
	start, end int64
	stored     int64 // bytes with the From_ line and the newline behind the message
	quoted     bool
}

// splitMbox finds the messages in an mbox file, in one pass.
func splitMbox(r io.ReaderAt, size int64, variant Mbox, yield func(span) bool) error {
	s := &mboxSplitter{file: r, size: size, variant: variant}
	s.seek(0)
	for {
		line, err := s.next()
		if errors.Is(err, io.EOF) {
			if s.open {
				yield(s.finish(size))
			}
			return nil
		}
		if err != nil {
			return err
		}
		switch {
		case s.separates(line):
			if s.open && !yield(s.finish(line.start)) {
				return nil
			}
			s.begin(line)
		case s.open:
			s.inside(line)
		case line.end-line.start > int64(line.eol):
			return errors.New("not an mbox file: it does not begin with a From_ line")
		}
	}
}

type mboxSplitter struct {
	file    io.ReaderAt
	size    int64
	variant Mbox
	in      *bufio.Reader
	pos     int64
	last    mboxLine // the line before

	lax  bool // the first From_ line has no date, so none is asked for
	some bool // a From_ line was seen

	// The message being read.
	open     bool
	from     mboxLine // its From_ line
	body     int64    // where its body begins; 0 within the header
	length   int64    // its Content-Length, or -1
	jumpedTo int64    // the end of the message by Content-Length, or 0
	bareFrom bool     // its body has a line that begins "From "
}

// mboxLine is one line; head is at most its first 1024 bytes.
type mboxLine struct {
	start, end int64
	eol        int // bytes of its line end: 0, 1 for LF, 2 for CRLF
	head       []byte
}

func (l mboxLine) isFrom() bool { return bytes.HasPrefix(l.head, []byte(fromPrefix)) }

const maxLineHead = 1024

func (s *mboxSplitter) seek(pos int64) {
	s.pos = pos
	section := io.NewSectionReader(s.file, pos, s.size-pos)
	if s.in == nil {
		s.in = bufio.NewReaderSize(section, 64<<10)
	} else {
		s.in.Reset(section)
	}
}

// next reads a line of any length. Its head is good until the next call.
func (s *mboxSplitter) next() (mboxLine, error) {
	line := mboxLine{start: s.pos, head: s.last.head[:0]}
	var before byte // the last byte of the chunk before
	for {
		chunk, err := s.in.ReadSlice('\n')
		s.pos += int64(len(chunk))
		line.head = append(line.head, chunk[:min(len(chunk), maxLineHead-len(line.head))]...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			before = chunk[len(chunk)-1]
			continue
		case err != nil && (!errors.Is(err, io.EOF) || s.pos == line.start):
			return line, err
		}
		if err == nil {
			line.eol = 1
			if n := len(chunk); n > 1 {
				before = chunk[n-2]
			}
			if before == '\r' {
				line.eol = 2
			}
		}
		line.end = s.pos
		return line, nil
	}
}

// separates reports whether a line is the From_ line of the next message.
func (s *mboxSplitter) separates(line mboxLine) bool {
	if !line.isFrom() {
		return false
	}
	if s.jumpedTo > 0 {
		return true // Content-Length was checked to lead here
	}
	dated := fromDate.Match(line.head)
	if !s.some {
		s.some, s.lax = true, !dated
		return true
	}
	switch {
	case s.variant == MboxO || s.variant == MboxRD:
		return true // any other one would be quoted
	case s.lax:
		return s.last.end-s.last.start == int64(s.last.eol)
	}
	return dated
}

func (s *mboxSplitter) begin(line mboxLine) {
	s.open, s.from, s.body, s.length, s.jumpedTo, s.bareFrom = true, line, 0, -1, 0, false
	s.last = line
}

// inside looks at a line of a message.
func (s *mboxSplitter) inside(line mboxLine) {
	s.last = line
	switch {
	case s.body > 0:
		s.bareFrom = s.bareFrom || line.isFrom()
	case line.end-line.start == int64(line.eol):
		s.body = line.end
		s.jump()
	case s.length < 0:
		name, value, _ := strings.Cut(string(line.head), ":")
		if strings.EqualFold(name, "Content-Length") {
			if n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64); err == nil && n >= 0 {
				s.length = n
			}
		}
	}
}

// jump goes to the end of the message by its Content-Length, if that leads to
// a From_ line or the end of the file.
func (s *mboxSplitter) jump() {
	if s.variant != MboxCL && s.variant != MboxCL2 || s.length < 0 || s.length > s.size-s.body {
		return
	}
	end := s.body + s.length
	var buf [2 + len(fromPrefix)]byte
	n, _ := s.file.ReadAt(buf[:], end)
	rest := buf[:n]
	for _, eol := range []string{"\r\n", "\n", ""} {
		after, ok := bytes.CutPrefix(rest, []byte(eol))
		if ok && (len(after) == 0 || bytes.HasPrefix(after, []byte(fromPrefix))) {
			s.jumpedTo = end
			s.seek(end + int64(len(eol)))
			return
		}
	}
}

// finish gives the message that ends before the From_ line, or the end of the
// file, at next. One newline before that is not the message's. It is two bytes
// only where the From_ line ended in CRLF as well: else the CR is the
// message's own last byte.
func (s *mboxSplitter) finish(next int64) span {
	m := span{start: s.from.end, end: next, stored: next - s.from.start, quoted: s.variant != MboxCL2}
	switch {
	case s.jumpedTo > 0:
		m.end = s.jumpedTo
	case s.last.start >= m.start:
		m.end -= int64(min(s.last.eol, max(1, s.from.eol)))
	}
	if s.variant == MboxAuto && s.bareFrom && s.body > 0 && s.length == m.end-s.body {
		m.quoted = false
	}
	return m
}

// read gives the message as it was before the mbox file's quoting.
func (m span) read(file io.ReaderAt, variant Mbox) io.Reader {
	r := io.NewSectionReader(file, m.start, m.end-m.start)
	switch {
	case !m.quoted:
		return r
	case variant == MboxO:
		return newUnquotedReader(r, removeOnly)
	}
	return newUnquotedReader(r, removeQuote)
}

func (s *source) mbox(name string) bool {
	f, err := os.Open(name)
	if err != nil {
		return s.fail(name, err)
	}
	defer f.Close()
	return s.mboxItems(name, f, 1)
}

// gzipMbox unpacks a compressed mbox file to a temporary one, because its
// messages must be readable in any order, and twice.
func (s *source) gzipMbox(name string, packed int64) bool {
	z, err := openGzip(name)
	if err != nil {
		return s.fail(name, err)
	}
	defer z.Close()
	f, err := newSpool("")
	if err != nil {
		return s.fail(name, err)
	}
	defer f.Close()
	size, err := io.Copy(f, z)
	if err != nil {
		return s.fail(name, fmt.Errorf("unpacking %s: %w", name, err))
	}
	return s.mboxItems(name, f, float64(packed)/float64(max(size, 1)))
}

// mboxItems yields the messages of an open mbox file, whose sizes are told
// times scale. The file is closed after the iteration over it: items are not
// good for longer.
func (s *source) mboxItems(name string, f *os.File, scale float64) bool {
	info, err := f.Stat()
	if err != nil {
		return s.fail(name, err)
	}
	variant := s.options.Mbox
	if variant == "" {
		variant = MboxAuto
	}
	n, more := 0, true
	err = splitMbox(f, info.Size(), variant, func(m span) bool {
		n++
		open := func() (io.ReadCloser, error) { return io.NopCloser(m.read(f, variant)), nil }
		more = s.yield(Item{Name: fmt.Sprintf("%s#%d", name, n), Size: int64(float64(m.stored) * scale), open: open}, nil)
		return more
	})
	if err != nil {
		return s.fail(name, fmt.Errorf("%s: %w", name, err))
	}
	return more
}
