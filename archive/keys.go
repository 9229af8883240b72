package archive

import (
	"encoding/binary"
	"time"

	"chainmail/archive/record"
)

// The database is one ordered key space; the first byte says what a key is.
//
//	m name                          → small things: format version, store, scrub
//	l store                         → logState
//	r store seq                     → receipt (record.AppendReceipt)
//	b store body chunk              → part of a message's bytes (body.go)
//	p store body                    → empty: a body written ahead of its receipt
//	h sha256                        → messageEntry: where the message is kept
//	d sha256 store seq              → empty: a further receipt of that message
//	j inner-sha256 sha256           → empty: a journal report of that message
//	t time store seq                → empty: the first receipt of a message
//	x store seq                     → Finding, JSON
//
// Integers are big endian so that keys sort like numbers: store, seq, body and
// time 8 bytes, chunk 4. Body and receipt keys of a log only grow, so a flush
// never overlaps what is below it; of the keys that come in random order
// (h, d, j) each takes some forty bytes a message.
const (
	kindMeta    = 'm'
	kindLog     = 'l'
	kindReceipt = 'r'
	kindBody    = 'b'
	kindPending = 'p'
	kindMessage = 'h'
	kindFurther = 'd'
	kindJournal = 'j'
	kindTime    = 't'
	kindFinding = 'x'
)

var (
	metaFormat = []byte("mformat")
	metaStore  = []byte("mstore")
	metaScrub  = []byte("mscrub")
)

func logKey(s record.StoreID) []byte { return u64(kindLog, uint64(s)) }

func receiptKey(p record.Position) []byte {
	return u64(kindReceipt, uint64(p.Store), uint64(p.Seq))
}

func bodyKey(s record.StoreID, b record.BodyNo, chunk uint32) []byte {
	return binary.BigEndian.AppendUint32(u64(kindBody, uint64(s), uint64(b)), chunk)
}

func pendingKey(s record.StoreID, b record.BodyNo) []byte {
	return u64(kindPending, uint64(s), uint64(b))
}

func messageKey(h record.Hash) []byte { return append([]byte{kindMessage}, h[:]...) }

func furtherKey(h record.Hash, p record.Position) []byte {
	k := append(make([]byte, 0, 1+len(h)+16), kindFurther)
	return appendPosition(append(k, h[:]...), p)
}

func journalKey(inner, report record.Hash) []byte {
	k := append(make([]byte, 0, 1+2*len(inner)), kindJournal)
	return append(append(k, inner[:]...), report[:]...)
}

func timeKey(t time.Time, p record.Position) []byte {
	return appendPosition(u64(kindTime, sortableTime(t)), p)
}

func findingKey(p record.Position) []byte {
	return u64(kindFinding, uint64(p.Store), uint64(p.Seq))
}

// sortableTime maps nanoseconds since 1970 so that earlier times, also those
// before 1970, are smaller numbers.
func sortableTime(t time.Time) uint64 { return uint64(t.UnixNano()) ^ 1<<63 }

func u64(kind byte, vs ...uint64) []byte {
	k := append(make([]byte, 0, 1+8*len(vs)+4), kind)
	for _, v := range vs {
		k = binary.BigEndian.AppendUint64(k, v)
	}
	return k
}

func appendPosition(k []byte, p record.Position) []byte {
	k = binary.BigEndian.AppendUint64(k, uint64(p.Store))
	return binary.BigEndian.AppendUint64(k, uint64(p.Seq))
}

// positionAt reads the position that ends a key.
func positionAt(k []byte) record.Position {
	k = k[len(k)-16:]
	return record.Position{
		Store: record.StoreID(binary.BigEndian.Uint64(k)),
		Seq:   record.Seq(binary.BigEndian.Uint64(k[8:])),
	}
}

// after is the smallest key that is larger than every key that begins with
// prefix.
func after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil // prefix is all 0xff: no bound
}

// logState is the value of an l key: what this node holds of one log.
//
//	| mark 8 | messages 8 | raw bytes 8 |
//
// Receipts 1 … mark are held. Messages and raw bytes count the messages that
// were new to the node when a receipt of this log brought them.
type logState struct {
	mark     record.Seq
	messages uint64
	rawBytes uint64
}

func (s logState) encode() []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 24), uint64(s.mark))
	b = binary.BigEndian.AppendUint64(b, s.messages)
	return binary.BigEndian.AppendUint64(b, s.rawBytes)
}

func decodeLogState(b []byte) (logState, error) {
	if len(b) != 24 {
		return logState{}, corrupt("log state is %d bytes, want 24", len(b))
	}
	return logState{
		mark:     record.Seq(binary.BigEndian.Uint64(b)),
		messages: binary.BigEndian.Uint64(b[8:]),
		rawBytes: binary.BigEndian.Uint64(b[16:]),
	}, nil
}

// messageEntry is the value of an h key: for every log that keeps the
// message's bytes, the first receipt there and the number of the body. The
// first element belongs to the message's first receipt on this node.
//
//	n × | store 8 | seq 8 | body 8 |
type messageEntry []bodyRef

type bodyRef struct {
	pos  record.Position
	body record.BodyNo
}

func (e messageEntry) encode() []byte {
	b := make([]byte, 0, 24*len(e))
	for _, r := range e {
		b = binary.BigEndian.AppendUint64(appendPosition(b, r.pos), uint64(r.body))
	}
	return b
}

func decodeMessageEntry(b []byte) (messageEntry, error) {
	if len(b) == 0 || len(b)%24 != 0 {
		return nil, corrupt("message entry is %d bytes, want a multiple of 24", len(b))
	}
	e := make(messageEntry, 0, len(b)/24)
	for ; len(b) > 0; b = b[24:] {
		e = append(e, bodyRef{positionAt(b[:16]), record.BodyNo(binary.BigEndian.Uint64(b[16:]))})
	}
	return e, nil
}

// in finds the body that the log of store s keeps.
func (e messageEntry) in(s record.StoreID) (bodyRef, bool) {
	for _, r := range e {
		if r.pos.Store == s {
			return r, true
		}
	}
	return bodyRef{}, false
}
