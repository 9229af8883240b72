package membership

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"
)

// fsm is the replicated state machine: it runs the log's commands through
// state.apply and tells publish of each new state.
type fsm struct {
	publish func(state) // nil: nobody is told
	// unknown is told of a command that this version does not understand. Nil:
	// nobody is told.
	unknown func(error)

	mu    sync.Mutex
	state state
}

func (f *fsm) get() state {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

func (f *fsm) set(s state) {
	f.mu.Lock()
	f.state = s
	f.mu.Unlock()
	if f.publish != nil {
		f.publish(s)
	}
}

// Apply and the methods after it are those of raft.FSM.
func (f *fsm) Apply(l *raft.Log) any {
	c, err := decodeCommand(l.Data)
	if err != nil {
		err = fmt.Errorf("entry %d of the cluster's log cannot be understood by this version: %w: install the version that the other members run", l.Index, err)
		if f.unknown != nil {
			f.unknown(err)
		}
		return result{Refused: refuse(reasonRefused, "%v", err)}
	}
	s, r := f.get().apply(c)
	f.set(s)
	return r
}

// Snapshot keeps nothing locked: states are immutable.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) { return snapshot{f.get()}, nil }

func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxState))
	if err != nil {
		return err
	}
	s, err := decodeState(b)
	if err != nil {
		return err
	}
	f.set(s)
	return nil
}

// maxState bounds the JSON of a state, in bytes.
const maxState = 16 << 20

type snapshot struct{ state state }

func (s snapshot) Persist(sink raft.SnapshotSink) error {
	b, err := encodeState(s.state)
	if err == nil {
		_, err = sink.Write(b)
	}
	if err != nil {
		_ = sink.Cancel()
		return err
	}
	return sink.Close()
}

func (s snapshot) Release() {}

func encodeCommand(c command) ([]byte, error) { return json.Marshal(c) }
