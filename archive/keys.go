package archive

import (
	"encoding/binary"
	"slices"
	"time"

	"chainmail/archive/record"
)

// The database is one ordered key space; the first byte says what a key is.
//
//	m name                          → small things: format version, store, scrub
//	l store                         → logState
//	o store                         → logInfo, JSON
//	r store seq                     → receipt (record.AppendReceipt)
//	b store body chunk              → part of a message's bytes (body.go)
//	p store body                    → empty: a body written ahead of its receipt
//	q store seq sha256              → Conflict, JSON; the hash is of the receipt
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
	kindMeta     = 'm'
	kindLog      = 'l'
	kindInfo     = 'o'
	kindReceipt  = 'r'
	kindBody     = 'b'
	kindPending  = 'p'
	kindConflict = 'q'
	kindMessage  = 'h'
	kindFurther  = 'd'
	kindJournal  = 'j'
	kindTime     = 't'
	kindFinding  = 'x'
)

var (
	metaFormat = []byte("mformat")
	metaStore  = []byte("mstore")
	metaScrub  = []byte("mscrub")
)

func logKey(s record.StoreID) []byte { return u64(kindLog, uint64(s)) }

func infoKey(s record.StoreID) []byte { return u64(kindInfo, uint64(s)) }

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

// conflictKey names one refused receipt, by the SHA-256 of its stored form.
func conflictKey(p record.Position, refused record.Hash) []byte {
	return append(u64(kindConflict, uint64(p.Store), uint64(p.Seq)), refused[:]...)
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

// storeAt reads a store at the start of a key's rest.
func storeAt(k []byte) record.StoreID { return record.StoreID(binary.BigEndian.Uint64(k)) }

// chunkAt reads the chunk's number that ends a body key.
func chunkAt(k []byte) uint32 { return binary.BigEndian.Uint32(k[len(k)-4:]) }

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
//	| mark 8 | messages 8 | raw bytes 8 | n × | first 8 | last 8 |
//
// Receipts 1 … mark are held, and above it those of the ranges: rising, with
// gaps between them. The own log has none above its mark. Messages and raw
// bytes count the messages that were new to the node when a receipt of this
// log brought them.
type logState struct {
	mark     record.Seq
	above    record.Ranges
	messages uint64
	rawBytes uint64
}

// held is the set of the receipts that are held.
func (s logState) held() record.Ranges { return record.Of(1, s.mark).Union(s.above) }

// has reports whether a receipt is held.
func (s logState) has(seq record.Seq) bool {
	return seq != 0 && (seq <= s.mark || s.above.Has(seq))
}

// hold adds receipts.
func (s *logState) hold(r record.Ranges) {
	s.above = s.held().Union(r)
	if s.mark = s.above.Mark(); s.mark > 0 {
		s.above = s.above[1:]
	}
}

func (s logState) encode() []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 24+16*len(s.above)), uint64(s.mark))
	b = binary.BigEndian.AppendUint64(b, s.messages)
	b = binary.BigEndian.AppendUint64(b, s.rawBytes)
	for _, r := range s.above {
		b = binary.BigEndian.AppendUint64(b, uint64(r.First))
		b = binary.BigEndian.AppendUint64(b, uint64(r.Last))
	}
	return b
}

func decodeLogState(b []byte) (logState, error) {
	if len(b) < 24 || len(b)%16 != 8 {
		return logState{}, corrupt("log state is %d bytes, want 24 and a multiple of 16", len(b))
	}
	s := logState{
		mark:     record.Seq(binary.BigEndian.Uint64(b)),
		messages: binary.BigEndian.Uint64(b[8:]),
		rawBytes: binary.BigEndian.Uint64(b[16:]),
	}
	last := s.mark
	for b = b[24:]; len(b) > 0; b = b[16:] {
		r := record.Range{First: record.Seq(binary.BigEndian.Uint64(b)), Last: record.Seq(binary.BigEndian.Uint64(b[8:]))}
		if r.First <= last+1 || r.Last < r.First {
			return logState{}, corrupt("log state: range %v does not follow %v with a gap", r, last)
		}
		last = r.Last
		s.above = append(s.above, r)
	}
	return s, nil
}

// messageEntry is the value of an h key: for every body that keeps the
// message's bytes, the first receipt known here that has it and the number of
// the body in that receipt's log. A log has one, or several where an older one
// was damaged. The first element belongs to the message's first receipt on
// this node, which has the time key; all others have further keys.
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

// at finds a body of the log of store s.
func (e messageEntry) at(s record.StoreID, b record.BodyNo) (bodyRef, bool) {
	i := slices.IndexFunc(e, func(r bodyRef) bool { return r.pos.Store == s && r.body == b })
	if i < 0 {
		return bodyRef{}, false
	}
	return e[i], true
}

// with is the entry with one more body, in memory of its own.
func (e messageEntry) with(r bodyRef) messageEntry {
	return append(slices.Clip(e), r)
}
