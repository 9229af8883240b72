package route

import (
	"bytes"
	"io"
)

// stuffer writes a body as DATA wants it: a dot at the beginning of a line is
// doubled, and the end is CRLF. It changes nothing else.
//
// A line begins after CRLF. Servers that also take a CR or an LF alone for a
// line end would take the end of the mail for one of theirs when a dot stands
// alone between two of them, and what follows for commands: a sender of mail
// could make this route say what he likes. Such a dot is doubled too. A strict
// server then keeps it doubled; to be exact there needs CHUNKING.
type stuffer struct {
	w       io.Writer
	last    [2]byte // bytes written, the later one second; a line end at first
	pending bool    // a dot behind a CR or LF alone was not written yet
}

func newStuffer(w io.Writer) *stuffer { return &stuffer{w: w, last: [2]byte{'\r', '\n'}} }

var (
	dot  = []byte(".")
	dots = []byte("..")
)

func (s *stuffer) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if s.pending {
			if err := s.decide(p[0] == '\r' || p[0] == '\n'); err != nil {
				return 0, err
			}
		}
		i := bytes.IndexByte(p, '.')
		if i < 0 {
			return n, s.put(p)
		}
		if err := s.put(p[:i]); err != nil {
			return 0, err
		}
		p = p[i+1:]
		if err := s.dot(); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// dot takes the next dot of the body.
func (s *stuffer) dot() error {
	switch {
	case s.last == [2]byte{'\r', '\n'}:
		return s.put(dots)
	case s.last[1] == '\r', s.last[1] == '\n':
		s.pending = true // what follows decides
		return nil
	}
	return s.put(dot)
}

func (s *stuffer) decide(alone bool) error {
	s.pending = false
	if alone {
		return s.put(dots)
	}
	return s.put(dot)
}

func (s *stuffer) put(p []byte) error {
	switch n := len(p); n {
	case 0:
		return nil
	case 1:
		s.last[0], s.last[1] = s.last[1], p[0]
	default:
		copy(s.last[:], p[n-2:])
	}
	_, err := s.w.Write(p)
	return err
}

// Close ends the mail with the line end that it may lack and the dot.
func (s *stuffer) Close() error {
	if s.pending {
		if err := s.decide(true); err != nil {
			return err
		}
	}
	end := ".\r\n"
	switch {
	case s.last == [2]byte{'\r', '\n'}:
	case s.last[1] == '\r':
		end = "\n" + end
	default:
		end = "\r\n" + end
	}
	_, err := io.WriteString(s.w, end)
	return err
}
