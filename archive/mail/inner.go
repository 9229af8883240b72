package mail

import (
	"bytes"
	"io"
)

// Inner returns the bytes of the message inside the journal report that r
// gives. The errors are ErrNotJournal, ErrBadJournal, ErrProtected and those
// of r; damage behind the beginning of the inner message comes from the
// returned reader, in place of io.EOF.
func Inner(r io.Reader) (io.Reader, error) {
	in := &innerReader{source: r, parser: NewJournalParser(), chunk: make([]byte, 32<<10)}
	in.parser.inner.copyTo = &in.ready
	for !in.parser.inner.begun && in.err == nil {
		in.fill()
	}
	if !in.parser.inner.begun {
		return nil, in.err
	}
	return in, nil
}

// innerReader pulls a report through a parser. No more than the decoded form
// of one chunk is ever ready.
type innerReader struct {
	source io.Reader
	parser *JournalParser
	chunk  []byte
	ready  bytes.Buffer
	err    error // io.EOF: the inner message was whole
}

func (in *innerReader) fill() {
	n, err := in.source.Read(in.chunk)
	in.parser.Write(in.chunk[:n])
	switch {
	case err == io.EOF || err == nil && in.parser.done:
		if _, in.err = in.parser.Close(); in.err == nil {
			in.err = io.EOF
		}
	case err != nil:
		in.err = err
	}
}

func (in *innerReader) Read(b []byte) (int, error) {
	for in.ready.Len() == 0 {
		if in.err != nil {
			return 0, in.err
		}
		in.fill()
	}
	return in.ready.Read(b)
}
