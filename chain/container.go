package chain

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"chainmail/archive/record"
)

// A container carries receipts, with or without their bodies, from one node to
// another:
//
//	+----------------------+-------+-------+-----+-----------+
//	| "chainmail container | frame | frame | ... | end frame |
//	|  1\n"               |       |       |     |           |
//	+----------------------+-------+-------+-----+-----------+
//
//	frame:    +------+----------------+---------+
//	          | kind | length         | payload |
//	          |  1   | 4, big endian  |         |
//	          +------+----------------+---------+
//
//	log       'L'   JSON of record.Log without what is held: origin and placements
//	receipt   'R'   +-------+-----+-------+--------------------------+
//	                | store | seq | flags | as record.AppendReceipt  |
//	                |   8   |  8  |   1   | made it                  |
//	                +-------+-----+-------+--------------------------+
//	                flags: 1 = chunks of the body follow; others 0
//	chunk     'C'   a stored chunk of the body of the last receipt
//	end       'E'   CRC-32C of all bytes before this frame, 4, big endian
//
// The checksum is against mistakes of programs and memory: against everybody
// else there is TLS, and each body is checked by the SHA-256 in its receipt. A
// cryptographic one would cost half of that check again, on both sides.
//
// The log frame of a store comes before its first receipt. A kind that a
// reader does not know is skipped: a later version may add some. Nothing
// follows the end frame. The bounds below are on payloads.
const (
	containerMagic = "chainmail container 1\n"

	frameLog     = 'L'
	frameReceipt = 'R'
	frameChunk   = 'C'
	frameEnd     = 'E'

	frameHead   = 5
	receiptHead = 17
	flagBody    = 1

	maxLogFrame     = 1 << 20
	maxReceiptFrame = 16 << 20 // thousands of recipients in a journal report
	maxFrame        = 1 << 20  // chunks, and kinds that are not known
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errMalformed is inside every error about what a container holds.
var errMalformed = errors.New("malformed container")

// containerWriter makes a container. What it wrote can be taken back as far as
// the last flush; so a receipt whose body cannot be read leaves no trace.
type containerWriter struct {
	buf *bytes.Buffer
	sum uint32 // of what was flushed
	// flush is given the buffer's bytes when there are many. They are its own
	// only during the call.
	flush   func([]byte) error
	limit   int // bytes of the buffer at which it is flushed
	flushes int
}

func newContainerWriter(limit int, flush func([]byte) error) *containerWriter {
	w := &containerWriter{buf: writerBuffers.Get().(*bytes.Buffer), flush: flush, limit: limit}
	w.buf.WriteString(containerMagic)
	return w
}

// writerBuffers are of the size of a segment, sooner or later.
var writerBuffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// release gives the buffer to the next writer. This one is done with.
func (w *containerWriter) release() {
	if w.buf.Cap() <= 4*segment {
		w.buf.Reset()
		writerBuffers.Put(w.buf)
	}
	w.buf = nil
}

func (w *containerWriter) head(kind byte, size int) {
	w.buf.Write(binary.BigEndian.AppendUint32(append(w.buf.AvailableBuffer(), kind), uint32(size)))
}

// log tells origin and placements of a log.
func (w *containerWriter) log(l record.Log) error {
	l.Held = nil
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if len(text) > maxLogFrame {
		return fmt.Errorf("what is known of log %v takes %d bytes, more than %d: too many placements", l.Store, len(text), maxLogFrame)
	}
	w.head(frameLog, len(text))
	w.buf.Write(text)
	return nil
}

// receipt adds a receipt; hasBody says that chunks follow.
func (w *containerWriter) receipt(p record.Position, encoded []byte, hasBody bool) error {
	if len(encoded) > maxReceiptFrame-receiptHead {
		return fmt.Errorf("receipt %v takes %d bytes, more than %d", p, len(encoded), maxReceiptFrame-receiptHead)
	}
	w.head(frameReceipt, receiptHead+len(encoded))
	head := binary.BigEndian.AppendUint64(w.buf.AvailableBuffer(), uint64(p.Store))
	head = binary.BigEndian.AppendUint64(head, uint64(p.Seq))
	if hasBody {
		head = append(head, flagBody)
	} else {
		head = append(head, 0)
	}
	w.buf.Write(head)
	w.buf.Write(encoded)
	return nil
}

// chunk adds a part of the body of the last receipt. It flushes when the
// buffer is full.
func (w *containerWriter) chunk(stored []byte) error {
	if len(stored) > maxFrame {
		return fmt.Errorf("a stored chunk takes %d bytes, more than %d", len(stored), maxFrame)
	}
	w.head(frameChunk, len(stored))
	w.buf.Write(stored)
	if w.buf.Len() < w.limit {
		return nil
	}
	w.flushes++
	w.sum = crc32.Update(w.sum, castagnoli, w.buf.Bytes())
	defer w.buf.Reset()
	return w.flush(w.buf.Bytes())
}

// size is how many bytes wait to be flushed: a mark for truncate as well.
func (w *containerWriter) size() int { return w.buf.Len() }

// truncate takes back what was added since size was n, if it was not flushed.
func (w *containerWriter) truncate(n int) { w.buf.Truncate(n) }

// end gives the last bytes, with the end frame. They are good until release.
func (w *containerWriter) end() []byte {
	w.sum = crc32.Update(w.sum, castagnoli, w.buf.Bytes())
	w.head(frameEnd, crc32.Size)
	w.buf.Write(binary.BigEndian.AppendUint32(w.buf.AvailableBuffer(), w.sum))
	return w.buf.Bytes()
}

// frame is what a container reader gives: a log, a receipt or a chunk. The
// slices are of the reader's buffer.
type frame struct {
	kind     byte
	size     int             // of its payload
	log      record.Log      // frameLog
	position record.Position // frameReceipt
	encoded  []byte          // frameReceipt
	hasBody  bool            // frameReceipt
	chunk    []byte          // frameChunk
}

// containerReader reads a container frame by frame.
type containerReader struct {
	r     io.Reader
	sum   uint32
	buf   []byte // holds the payloads; the caller may change it for another
	head  [frameHead]byte
	begun bool
	body  bool // chunks may come
}

func newContainerReader(r io.Reader) *containerReader { return &containerReader{r: r} }

// next gives the next frame that is known, and io.EOF after a good end. An
// errMalformed says that the bytes are no container; any other error is the
// reader's.
func (c *containerReader) next() (frame, error) {
	if !c.begun {
		magic := make([]byte, len(containerMagic))
		if err := c.fill(magic); err != nil {
			return frame{}, err
		}
		if string(magic) != containerMagic {
			return frame{}, fmt.Errorf("%w: it begins with %q", errMalformed, magic)
		}
		c.add(magic)
		c.begun = true
	}
	for {
		f, known, err := c.one()
		if err != nil || known {
			return f, err
		}
	}
}

// add adds bytes to the checksum.
func (c *containerReader) add(b []byte) { c.sum = crc32.Update(c.sum, castagnoli, b) }

// one reads a frame.
func (c *containerReader) one() (f frame, known bool, err error) {
	if err := c.fill(c.head[:]); err != nil {
		return f, false, err
	}
	f.kind = c.head[0]
	payload, err := c.payload(f.kind, binary.BigEndian.Uint32(c.head[1:]))
	if err != nil {
		return f, false, err
	}
	if f.kind == frameEnd {
		return f, true, c.ended(payload)
	}
	f.size = len(payload)
	c.add(c.head[:])
	c.add(payload)
	switch f.kind {
	case frameLog:
		err = f.parseLog(payload)
	case frameReceipt:
		err = f.parseReceipt(payload)
		c.body = f.hasBody
	case frameChunk:
		f.chunk = payload
		if !c.body {
			err = fmt.Errorf("%w: a chunk without a receipt that has a body", errMalformed)
		}
	default:
		c.buf = c.buf[:len(c.buf)-len(payload)]
		return f, false, nil
	}
	return f, true, err
}

// payload reads a frame's payload into the buffer, or into a new one when it
// does not fit: what was read before stays.
func (c *containerReader) payload(kind byte, size uint32) ([]byte, error) {
	limit := uint32(maxFrame)
	switch kind {
	case frameReceipt:
		limit = maxReceiptFrame
	case frameEnd:
		limit = crc32.Size
	}
	if size > limit {
		return nil, fmt.Errorf("%w: a frame of kind %q has %d bytes, more than %d", errMalformed, kind, size, limit)
	}
	begin := len(c.buf)
	if cap(c.buf)-begin < int(size) {
		begin = 0
		c.buf = make([]byte, 0, max(int(size), min(2*cap(c.buf), 2*loadBytes), 4<<10))
	}
	c.buf = c.buf[:begin+int(size)]
	payload := c.buf[begin:len(c.buf):len(c.buf)]
	return payload, c.fill(payload)
}

// fill reads all of b. A container that ends within is malformed.
func (c *containerReader) fill(b []byte) error {
	_, err := io.ReadFull(c.r, b)
	if len(b) > 0 && (err == io.EOF || err == io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it ends too early", errMalformed)
	}
	return err
}

// ended checks the end frame and that nothing follows.
func (c *containerReader) ended(sum []byte) error {
	if len(sum) != crc32.Size || binary.BigEndian.Uint32(sum) != c.sum {
		return fmt.Errorf("%w: its checksum is not the one at its end", errMalformed)
	}
	if _, err := io.ReadFull(c.r, make([]byte, 1)); err != nil {
		return err // io.EOF where all is well
	}
	return fmt.Errorf("%w: bytes follow its end", errMalformed)
}

func (f *frame) parseLog(payload []byte) error {
	if err := json.Unmarshal(payload, &f.log); err != nil {
		return fmt.Errorf("%w: log: %w", errMalformed, err)
	}
	f.log.Held = nil
	if err := checkLog(f.log); err != nil {
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	return nil
}

func (f *frame) parseReceipt(payload []byte) error {
	if len(payload) < receiptHead {
		return fmt.Errorf("%w: a receipt of %d bytes", errMalformed, len(payload))
	}
	f.position.Store = record.StoreID(binary.BigEndian.Uint64(payload))
	f.position.Seq = record.Seq(binary.BigEndian.Uint64(payload[8:]))
	f.hasBody = payload[16]&flagBody != 0
	f.encoded = payload[receiptHead:]
	if f.position.Seq == 0 || f.position.Seq > maxSeq {
		return fmt.Errorf("%w: receipt %v: that is no sequence number", errMalformed, f.position)
	}
	if _, err := record.DecodeReceipt(f.position, f.encoded); err != nil {
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	return nil
}

// maxSeq is far beyond any log; larger numbers are damage.
const maxSeq = 1 << 62

// checkLog checks what a peer says of a log: placements must rise, and name
// somebody, or decisions built on them would be nonsense.
func checkLog(l record.Log) error {
	last := record.Seq(0)
	if l.Held.Last() > maxSeq {
		return fmt.Errorf("log %v: number %v is beyond any log", l.Store, l.Held.Last())
	}
	for _, p := range l.Placements {
		if p.From < max(last, 1) || len(p.Nodes) == 0 {
			return fmt.Errorf("log %v: placement from %d on %q: want rising numbers and at least one node", l.Store, p.From, p.Nodes)
		}
		last = p.From
	}
	return nil
}
