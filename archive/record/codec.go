package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// The stored form of a receipt, version 1. Integers are unsigned varints
// (encoding/binary) in their shortest form unless a width is given; strings
// are a length and that many bytes.
//
//	+---------+-------------------+-----------+------+------+
//	| version | received at       | SHA-256   | size | body |
//	| 1 byte  | 8 bytes, ns since | 32 bytes  |      |      |
//	|         | 1970, big endian  |           |      |      |
//	+---------+-------------------+-----------+------+------+
//	| from | client | helo | tls | user | connector   strings |
//	+------+--------+------+-----+------+--------------------+
//	| n | n recipient strings | journal: 0, or 1 and …       |
//	+---+---------------------+------------------------------+
//	… inner SHA-256 (32) | inner size | sender | subject | message ID |
//	  on behalf of | n | n × (address | role | expanded | forwarded)
//
// The position is not inside: it is the key under which the receipt is kept.
// There is exactly one encoding of a receipt, so that a digest over encoded
// receipts means the same on every node.
const receiptVersion = 1

// ErrMalformed is inside every error that DecodeReceipt returns.
var ErrMalformed = errors.New("malformed receipt")

// AppendReceipt appends the stored form of r, without its position, to b.
func AppendReceipt(b []byte, r *Receipt) []byte {
	b = append(b, receiptVersion)
	b = binary.BigEndian.AppendUint64(b, uint64(r.ReceivedAt.UnixNano()))
	b = append(b, r.Hash[:]...)
	b = binary.AppendUvarint(b, uint64(r.Size))
	b = binary.AppendUvarint(b, uint64(r.Body))
	e := &r.Envelope
	for _, s := range []string{e.From, e.Client, e.Helo, e.TLS, e.User, e.Connector} {
		b = appendString(b, s)
	}
	b = binary.AppendUvarint(b, uint64(len(e.To)))
	for _, to := range e.To {
		b = appendString(b, to)
	}
	if e.Journal == nil {
		return append(b, 0)
	}
	return appendJournal(append(b, 1), e.Journal)
}

func appendJournal(b []byte, j *Journal) []byte {
	b = append(b, j.Inner[:]...)
	b = binary.AppendUvarint(b, uint64(j.InnerSize))
	for _, s := range []string{j.Sender, j.Subject, j.MessageID, j.OnBehalfOf} {
		b = appendString(b, s)
	}
	b = binary.AppendUvarint(b, uint64(len(j.Recipients)))
	for _, r := range j.Recipients {
		for _, s := range []string{r.Address, r.Role, r.Expanded, r.Forwarded} {
			b = appendString(b, s)
		}
	}
	return b
}

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// DecodeReceipt reads what AppendReceipt wrote for the receipt at p. The
// result shares no memory with b.
func DecodeReceipt(p Position, b []byte) (Receipt, error) {
	d := decoder{b: b}
	if v := d.bytes(1); d.err == nil && v[0] != receiptVersion {
		return Receipt{}, fmt.Errorf("%w %v: version %d, this program knows %d: use a newer chainmail", ErrMalformed, p, v[0], receiptVersion)
	}
	r := Receipt{Position: p}
	if t := d.bytes(8); d.err == nil {
		r.ReceivedAt = time.Unix(0, int64(binary.BigEndian.Uint64(t))).UTC()
	}
	copy(r.Hash[:], d.bytes(len(r.Hash)))
	r.Size = int64(d.uvarint())
	r.Body = BodyNo(d.uvarint())
	e := &r.Envelope
	for _, s := range []*string{&e.From, &e.Client, &e.Helo, &e.TLS, &e.User, &e.Connector} {
		*s = d.string()
	}
	for range d.count(1) {
		e.To = append(e.To, d.string())
	}
	switch flag := d.bytes(1); {
	case d.err != nil || flag[0] == 0:
	case flag[0] == 1:
		e.Journal = d.journal()
	default:
		d.fail(fmt.Errorf("journal flag is %d", flag[0]))
	}
	if d.err == nil && len(d.b) > 0 {
		d.fail(fmt.Errorf("%d bytes too many", len(d.b)))
	}
	if d.err != nil {
		return Receipt{}, fmt.Errorf("%w %v: %w", ErrMalformed, p, d.err)
	}
	return r, nil
}

// decoder takes values off the front of b; after the first error it gives
// zero values.
type decoder struct {
	b   []byte
	err error
}

var (
	errShort   = errors.New("ends too early")
	errVarint  = errors.New("a number is not in its shortest form")
	errTooLong = errors.New("a size does not fit 63 bits")
)

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
	d.b = nil
}

func (d *decoder) bytes(n int) []byte {
	if d.err != nil || n > len(d.b) {
		d.fail(errShort)
		return nil
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	switch {
	case d.err != nil || n == 0:
		d.fail(errShort)
		return 0
	case n < 0, n > 1 && d.b[n-1] == 0:
		d.fail(errVarint)
		return 0
	case v > 1<<63-1:
		d.fail(errTooLong)
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) string() string {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.fail(errShort)
		return ""
	}
	return string(d.bytes(int(n)))
}

// count reads the length of a list whose elements take at least minSize bytes
// each, so that a damaged count cannot ask for more memory than there is data.
func (d *decoder) count(minSize int) int {
	n := d.uvarint()
	if n > uint64(len(d.b)/minSize) {
		d.fail(errShort)
		return 0
	}
	return int(n)
}

func (d *decoder) journal() *Journal {
	j := new(Journal)
	copy(j.Inner[:], d.bytes(len(j.Inner)))
	j.InnerSize = int64(d.uvarint())
	for _, s := range []*string{&j.Sender, &j.Subject, &j.MessageID, &j.OnBehalfOf} {
		*s = d.string()
	}
	for range d.count(4) {
		var r JournalRecipient
		for _, s := range []*string{&r.Address, &r.Role, &r.Expanded, &r.Forwarded} {
			*s = d.string()
		}
		j.Recipients = append(j.Recipients, r)
	}
	return j
}
