package chain

import (
	"errors"
	"io"

	"chainmail/archive/record"
)

const (
	loadBytes  = 256 << 10 // of payloads, about
	loadFrames = 1024
	loads      = 3 // of a connection: one is read, one taken, one on the way
)

// load is a part of a container: frames, and the memory that they are in.
type load struct {
	frames []frame
	buf    []byte
	err    error // why it is the last one: io.EOF after a good end
}

// fill reads frames until there are enough of them, or no more.
func (l *load) fill(r *containerReader) {
	l.frames, l.err, r.buf = l.frames[:0], nil, l.buf[:0]
	for size := 0; size < loadBytes && len(l.frames) < loadFrames; {
		f, err := r.next()
		if err != nil {
			l.err = err
			break
		}
		l.frames = append(l.frames, f)
		size += f.size
	}
	l.buf = r.buf
}

// clear makes a load ready for the next use. Memory of extreme mail is not
// kept.
func (l *load) clear() {
	clear(l.frames)
	if cap(l.buf) > 2*loadBytes {
		l.buf = nil
	}
}

// newLoads are those of a connection. They take memory when they are used.
func newLoads() chan *load {
	all := make(chan *load, loads)
	for range loads {
		all <- &load{}
	}
	return all
}

// incoming is a container that comes in. To read it (TLS, frames, checksum) and
// to take it in (decompression, SHA-256, database) is work for the processor
// both, so two goroutines do it side by side. The one that reads may be ahead
// by the loads of the connection, and so may be in the next container already;
// that one is taken in only after this one.
//
//	connection ─► read ─► load ─► load ─► take ─► intake
//	               ▲                        │
//	               └──────── spare ◄────────┘
type incoming struct {
	spare chan *load    // to be filled
	full  chan *load    // has room for all there are
	ended chan struct{} // take wants no more
	taken chan struct{} // take is over; what follows is its own until then

	intake   Intake
	hulls    map[record.StoreID]record.Range // from the first to the last receipt of each log
	receipts int
	at       record.Position // the last receipt
	want     bool            // its chunks
	err      error           // nil: everything is entered; otherwise the intake is discarded
}

func newIncoming(intake Intake, spare chan *load) *incoming {
	return &incoming{
		spare: spare, full: make(chan *load, loads), ended: make(chan struct{}), taken: make(chan struct{}),
		intake: intake, hulls: map[record.StoreID]record.Range{},
	}
}

// read reads the container as far as it is wanted. When it returns, take is
// over or will be without its help. A small container is taken in by the
// caller's goroutine, when it is its turn already: to wake another one would
// cost more than it saves.
func (in *incoming) read(r *containerReader, before <-chan struct{}) {
	beside := false
	for more := true; more; {
		select {
		case <-in.ended:
			more = false
		case l := <-in.spare:
			l.fill(r)
			more = l.err == nil
			in.full <- l
			if !beside && (more || !isClosed(before)) {
				beside = true
				go in.take(before)
			}
		}
	}
	close(in.full)
	if !beside {
		in.take(before)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// take gives the container to the intake, after the one before it.
func (in *incoming) take(before <-chan struct{}) {
	defer close(in.taken)
	<-before
	for l := range in.full {
		if in.err == nil {
			if in.err = in.load(l); in.err != nil {
				close(in.ended)
			}
		}
		l.clear()
		in.spare <- l
	}
	if in.err == io.EOF {
		in.err = in.about(in.intake.Enter(), in.at)
	}
	if in.err != nil {
		in.intake.Discard()
	}
}

func (in *incoming) load(l *load) error {
	for _, f := range l.frames {
		if err := in.frame(f); err != nil {
			return err
		}
	}
	return l.err
}

func (in *incoming) frame(f frame) (err error) {
	switch f.kind {
	case frameLog:
		return in.intake.Log(f.log)
	case frameChunk:
		if !in.want {
			return nil
		}
		return in.about(in.intake.Chunk(f.chunk), in.at)
	}
	in.want, err = in.intake.Receipt(f.position, f.encoded, f.hasBody)
	switch {
	case errors.Is(err, ErrNoBody): // it is left out; the sender sees that and sends it with its body
		return nil
	case err != nil:
		return in.about(err, in.at)
	}
	in.at = f.position
	in.receipts++
	hull, ok := in.hulls[f.position.Store]
	if !ok {
		hull = record.Range{First: f.position.Seq, Last: f.position.Seq}
	}
	in.hulls[f.position.Store] = record.Range{First: min(hull.First, f.position.Seq), Last: max(hull.Last, f.position.Seq)}
	return nil
}
