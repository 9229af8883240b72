package mail

import "bytes"

// partHandler is told of the parts of a multipart body as they go by.
type partHandler interface {
	beginPart()
	partBytes(b []byte) // header, empty line and body; b is only lent
	endPart()
}

// splitter cuts the body of a multipart message at its delimiter lines (RFC
// 2046, 5.1.1) while it is written to it, byte-exact and in bounded memory:
//
//	preamble CRLF --boundary CRLF part CRLF --boundary CRLF part CRLF --boundary-- CRLF epilogue
//
// The line end before a delimiter belongs to the delimiter, not to the part,
// so a line end is held back until the line behind it is known to be none.
// Lines may end with CRLF or LF, each as it likes.
type splitter struct {
	handler partHandler
	delim   []byte // "--boundary"
	eol     []byte // the line end held back: "", LF or CRLF; in midLine perhaps a CR
	line    []byte // the beginning of a line that may yet become a delimiter
	midLine bool   // the current line is not a delimiter, and part of it is out
	open    bool   // within a part
	closed  bool   // the closing delimiter was seen
}

// maxPadding bounds the white space a relay may have put behind a delimiter.
const maxPadding = 256

func newSplitter(boundary string, h partHandler) *splitter {
	return &splitter{handler: h, delim: []byte("--" + boundary)}
}

func (s *splitter) write(b []byte) {
	for len(b) > 0 && !s.closed {
		if s.midLine {
			b = s.passLine(b)
		} else {
			b = s.startLine(b)
		}
	}
}

// finish is called at the end of the input, where the closing delimiter needs
// no line end; any other one does, or it may be the beginning of a longer line
// in a message that was cut off. It reports whether the parts were closed.
func (s *splitter) finish() bool {
	if !s.closed && !s.midLine && bytes.HasPrefix(s.line, append(s.delim, "--"...)) {
		s.delimiter()
	}
	return s.closed
}

// passLine gives the rest of a line that is not a delimiter to the part.
func (s *splitter) passLine(b []byte) []byte {
	i := bytes.IndexByte(b, '\n')
	chunk, rest := b, []byte(nil)
	if i >= 0 {
		chunk, rest = b[:i], b[i+1:]
	}
	if len(chunk) > 0 {
		s.emit(s.eol) // a CR that did not end the line after all
		s.eol = s.eol[:0]
		if chunk[len(chunk)-1] == '\r' {
			chunk = chunk[:len(chunk)-1]
			s.eol = append(s.eol, '\r')
		}
		s.emit(chunk)
	}
	if i >= 0 {
		s.eol = append(s.eol, '\n')
		s.midLine = false
	}
	return rest
}

// startLine collects a line for as long as it may be a delimiter.
func (s *splitter) startLine(b []byte) []byte {
	for i, c := range b {
		if c == '\n' {
			s.line = append(s.line, b[:i]...)
			if s.delimiter() {
				return b[i+1:]
			}
			s.notDelimiter()
			return b[i:]
		}
		if n := len(s.line) + i; n >= len(s.delim)+maxPadding || n < len(s.delim) && c != s.delim[n] {
			s.line = append(s.line, b[:i]...)
			s.notDelimiter()
			return b[i:]
		}
	}
	s.line = append(s.line, b...)
	return nil
}

// notDelimiter lets go of what was held back. The line goes on in passLine,
// which must see a CR at its end again.
func (s *splitter) notDelimiter() {
	s.emit(s.eol)
	s.eol = s.eol[:0]
	line := s.line
	if n := len(line); n > 0 && line[n-1] == '\r' {
		line = line[:n-1]
		s.eol = append(s.eol, '\r')
	}
	s.emit(line)
	s.line = s.line[:0]
	s.midLine = true
}

// delimiter ends a part, and begins the next one, when the collected line is a
// delimiter.
func (s *splitter) delimiter() bool {
	tail, ok := bytes.CutPrefix(s.line, s.delim)
	if !ok {
		return false
	}
	tail, last := bytes.CutPrefix(tail, []byte("--"))
	if len(bytes.Trim(tail, " \t\r")) > 0 {
		return false
	}
	s.line, s.eol = s.line[:0], s.eol[:0]
	if s.open {
		s.handler.endPart()
	}
	s.open, s.closed = !last, last
	if s.open {
		s.handler.beginPart()
	}
	return true
}

func (s *splitter) emit(b []byte) {
	if s.open && len(b) > 0 {
		s.handler.partBytes(b)
	}
}
