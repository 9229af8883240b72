package smtpd

import (
	"bytes"
	"time"
)

var crlfDot = []byte("\r\n.")

// readDots reads the body of DATA to its end, which is CRLF.CRLF and nothing
// else: any other sequence that some server takes for the end would let a
// client smuggle commands. The first dot of a line that begins with one is not
// part of the message (RFC 5321 4.5.2); all other bytes are, and go to sink as
// they came.
//
// Lines are what lies between CRLFs; a CR or LF on its own is content.
func (g *gate) readDots(sink func([]byte) error) error {
	g.grow()
	lineStart := true // the bytes before buf[r] were CRLF, or there were none
	for {
		b := g.buf[g.r:g.w]
		if lineStart {
			switch firstBytes(b) {
			case lineEndsBody:
				g.r += len(".\r\n")
				return nil
			case lineUndecided:
				if err := g.fill(g.pieceDeadline(), false); err != nil {
					return err
				}
				continue
			case lineStuffed:
				g.r++
				b = b[1:]
			}
			lineStart = false
		}
		var content int
		if i := bytes.Index(b, crlfDot); i >= 0 {
			content = i + len("\r\n")
			lineStart = true
		} else {
			content = len(b) - pendingCRLF(b)
		}
		if content > 0 {
			if err := sink(b[:content]); err != nil {
				return err
			}
			g.r += content
		}
		if !lineStart {
			if err := g.fill(g.pieceDeadline(), false); err != nil {
				return err
			}
		}
	}
}

// What the first bytes of a line make of it.
type lineKind int

const (
	linePlain     lineKind = iota
	lineStuffed            // its first dot is to be dropped
	lineEndsBody           // it is a dot and nothing else
	lineUndecided          // more bytes are needed
)

func firstBytes(b []byte) lineKind {
	const end = ".\r\n"
	n := min(len(b), len(end))
	switch {
	case n > 0 && b[0] != '.':
		return linePlain
	case string(b[:n]) != end[:n]:
		return lineStuffed
	case n == len(end):
		return lineEndsBody
	}
	return lineUndecided
}

// pendingCRLF counts the last bytes of b that may be the beginning of crlfDot.
func pendingCRLF(b []byte) int {
	switch {
	case bytes.HasSuffix(b, crlfDot[:2]):
		return 2
	case bytes.HasSuffix(b, crlfDot[:1]):
		return 1
	}
	return 0
}

// readExactly reads n bytes of a chunk.
func (g *gate) readExactly(n int64, sink func([]byte) error) error {
	for n > 0 {
		if g.r == g.w {
			if n > commandBuffer {
				g.grow()
			}
			if err := g.fill(g.pieceDeadline(), false); err != nil {
				return err
			}
		}
		piece := g.buf[g.r:min(int64(g.w), int64(g.r)+n)]
		if err := sink(piece); err != nil {
			return err
		}
		g.r += len(piece)
		n -= int64(len(piece))
	}
	return nil
}

// pieceDeadline is the time until which the next piece of a body must come. It
// starts anew with every piece, for a large mail on a slow line is no idle
// client; but a body that falls below minBodyRate altogether is one that holds
// memory and a connection on purpose.
func (g *gate) pieceDeadline() time.Time {
	idle := g.link.limits.IdleTimeout
	s := g.session
	slowest := s.began.Add(idle + time.Duration(s.size)*time.Second/minBodyRate)
	if next := time.Now().Add(idle); s.began.IsZero() || next.Before(slowest) {
		return next
	}
	return slowest
}
