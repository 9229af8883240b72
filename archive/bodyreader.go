package archive

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"

	"chainmail/archive/record"
)

// Body opens the exact bytes of a message. They are checked while they are
// read: damage is an ErrCorrupt from Read, at the latest in the place of
// io.EOF, and a damaged chunk is never given out.
func (a *Archive) Body(h record.Hash) (io.ReadCloser, error) {
	m, err := a.Message(h)
	if err != nil {
		return nil, err
	}
	r := m.Receipts[0]
	for _, other := range m.Receipts {
		if a.scrub.finding(other.Position) == nil {
			r = other // its log may have a body of its own
			break
		}
	}
	return a.openBody(r.Position.Store, r.Body, r.Hash, r.Size), nil
}

func (a *Archive) openBody(s record.StoreID, b record.BodyNo, h record.Hash, size int64) *bodyReader {
	return &bodyReader{a: a, store: s, body: b, want: h, left: size, sum: sha256.New()}
}

// bodyReader reads one body chunk by chunk. It holds nothing of the database
// between reads, so a slow reader holds nothing up.
type bodyReader struct {
	a     *Archive
	store record.StoreID
	body  record.BodyNo
	want  record.Hash
	left  int64 // raw bytes in chunks that are not read yet
	next  uint32
	sum   hash.Hash
	buf   []byte
	chunk []byte // of buf, not given out yet
	err   error
}

func (r *bodyReader) Read(p []byte) (int, error) {
	for len(r.chunk) == 0 && r.err == nil {
		r.chunk, r.err = r.nextChunk()
	}
	if r.err != nil {
		return 0, r.err
	}
	n := copy(p, r.chunk)
	r.chunk = r.chunk[n:]
	return n, nil
}

// WriteTo makes io.Copy pass whole chunks on.
func (r *bodyReader) WriteTo(w io.Writer) (n int64, err error) {
	for {
		if len(r.chunk) > 0 {
			m, err := w.Write(r.chunk)
			n += int64(m)
			r.chunk = r.chunk[m:]
			if err != nil {
				return n, err
			}
		}
		if r.err == nil {
			r.chunk, r.err = r.nextChunk()
		}
		if r.err == io.EOF {
			return n, nil
		}
		if r.err != nil {
			return n, r.err
		}
	}
}

func (r *bodyReader) nextChunk() ([]byte, error) {
	if r.left == 0 {
		if sum := record.Hash(r.sum.Sum(nil)); sum != r.want {
			return nil, corrupt("message %v: its bytes have the SHA-256 %v", r.want, sum)
		}
		return nil, io.EOF
	}
	done, err := r.a.use()
	if err != nil {
		return nil, err
	}
	defer done()
	packed, err := r.a.get(bodyKey(r.store, r.body, r.next))
	if err != nil {
		return nil, corrupt("message %v: chunk %d: %w", r.want, r.next, err)
	}
	z := r.a.compressors.Get().(*compressor)
	r.buf, err = z.decodeChunk(r.buf, packed)
	r.a.compressors.Put(z)
	if err == nil && int64(len(r.buf)) > r.left {
		err = corrupt("it is longer than the message")
	}
	if err != nil {
		return nil, fmt.Errorf("message %v: chunk %d: %w", r.want, r.next, err)
	}
	r.next++
	r.left -= int64(len(r.buf))
	r.sum.Write(r.buf)
	if r.left == 0 && record.Hash(r.sum.Sum(nil)) != r.want {
		return nil, corrupt("message %v: its bytes have another SHA-256", r.want)
	}
	return r.buf, nil
}

// Close ends the reading.
func (r *bodyReader) Close() error {
	r.err, r.chunk = ErrClosed, nil
	return nil
}
