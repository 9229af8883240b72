package mailbox

import (
	"bytes"
	"io"
)

// quoting is what a requoter does to the lines that match ^>*From_.
type quoting int

const (
	addQuote    quoting = iota // mboxrd: one more ">"
	removeQuote                // mboxrd: one less
	removeOnly                 // mboxo: ">From " becomes "From ", ">>From " stays
)

const fromPrefix = "From "

// requoter changes the From_ quoting of what is written to it, in constant
// memory. At the beginning of a line it withholds one ">" (when it removes) and
// the letters of "From " until it knows whether the line matches; since all
// ">" are alike, which of them it withholds makes no difference.
type requoter struct {
	w       io.Writer
	mode    quoting
	midLine bool
	run     int // ">" seen at the beginning of this line
	matched int // letters of "From " behind them
	out     []byte
}

func (q *requoter) Write(b []byte) (int, error) {
	q.out = q.out[:0]
	n := len(b)
	for len(b) > 0 {
		if !q.midLine {
			q.lineStart(b[0])
			b = b[1:]
			continue
		}
		i := bytes.IndexByte(b, '\n') + 1
		if i > 0 {
			q.midLine = false
		} else {
			i = len(b)
		}
		q.out = append(q.out, b[:i]...)
		b = b[i:]
	}
	_, err := q.w.Write(q.out)
	return n, err
}

// Close lets go of what is withheld; it does not close the writer below.
func (q *requoter) Close() error {
	q.out = q.out[:0]
	q.release()
	_, err := q.w.Write(q.out)
	return err
}

func (q *requoter) lineStart(c byte) {
	switch {
	case c == '>' && q.matched == 0:
		q.run++
		if q.run > 1 || q.mode == addQuote {
			q.out = append(q.out, c)
		}
	case c == fromPrefix[q.matched]:
		if q.matched++; q.matched == len(fromPrefix) {
			q.match()
			q.midLine = true
		}
	default:
		q.release()
		q.out = append(q.out, c)
		q.midLine = c != '\n'
	}
}

func (q *requoter) match() {
	switch {
	case q.mode == addQuote:
		q.out = append(q.out, '>')
	case q.mode == removeQuote && q.run > 0 || q.run == 1:
		q.run = 0 // the withheld ">" is dropped
	}
	q.release()
}

func (q *requoter) release() {
	if q.run > 0 && q.mode != addQuote {
		q.out = append(q.out, '>')
	}
	q.out = append(q.out, fromPrefix[:q.matched]...)
	q.run, q.matched = 0, 0
}

// unquotedReader takes the quoting off what it reads.
type unquotedReader struct {
	source io.Reader
	quoter requoter
	chunk  []byte
	ready  bytes.Buffer
	err    error
}

func newUnquotedReader(r io.Reader, mode quoting) io.Reader {
	u := &unquotedReader{source: r, chunk: make([]byte, 32<<10)}
	u.quoter = requoter{w: &u.ready, mode: mode}
	return u
}

func (u *unquotedReader) Read(b []byte) (int, error) {
	for u.ready.Len() == 0 {
		if u.err != nil {
			return 0, u.err
		}
		var n int
		n, u.err = u.source.Read(u.chunk)
		_, _ = u.quoter.Write(u.chunk[:n]) // into memory, which does not fail
		if u.err == io.EOF {
			u.quoter.Close()
		}
	}
	return u.ready.Read(b)
}
