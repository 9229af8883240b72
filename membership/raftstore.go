package membership

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
)

// Raft's log is tiny: a segment of this size holds thousands of changes.
const (
	segmentSize   = 1 << 20 // bytes, given to a segment's file at once
	snapshots     = 2       // kept
	snapshotAfter = 256     // entries
	trailing      = 128     // entries kept behind a snapshot
)

// raftStore is Raft's log, its stable values and its snapshots in a directory.
//
// Raft panics when it cannot read its log or store its term, which would end
// the process, and mail with it, for a full disk. So a store that is guarded
// ends only the goroutine that would panic, and says so on failed; the owner
// then stops what is left of Raft.
type raftStore struct {
	wal     *wal.WAL
	files   raft.SnapshotStore
	guarded atomic.Bool
	failed  chan error // the first failure
}

func openStore(dir string, log raftLog) (*raftStore, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	files, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshots, log)
	if err != nil {
		return nil, err
	}
	w, err := wal.Open(dir, wal.WithMetaStore(new(metaFile)), wal.WithSegmentSize(segmentSize), wal.WithLogger(log))
	if err != nil {
		return nil, err
	}
	return &raftStore{wal: w, files: files, failed: make(chan error, 1)}, nil
}

func (s *raftStore) close() error { return s.wal.Close() }

// fatal ends the calling goroutine of Raft, if the error would make it panic.
func (s *raftStore) fatal(err error) {
	if err == nil || !s.guarded.Load() {
		return
	}
	select {
	case s.failed <- err:
	default:
	}
	runtime.Goexit()
}

// FirstIndex and the methods after it are those of raft.LogStore and
// raft.StableStore.
func (s *raftStore) FirstIndex() (uint64, error) { return s.wal.FirstIndex() }

func (s *raftStore) LastIndex() (uint64, error) { return s.wal.LastIndex() }

func (s *raftStore) GetLog(index uint64, l *raft.Log) error {
	err := s.wal.GetLog(index, l)
	if err != nil && !errors.Is(err, raft.ErrLogNotFound) && !errors.Is(err, wal.ErrClosed) {
		s.fatal(fmt.Errorf("reading entry %d of the log: %w", index, err))
	}
	return err
}

func (s *raftStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

func (s *raftStore) StoreLogs(l []*raft.Log) error { return s.wal.StoreLogs(l) }

func (s *raftStore) DeleteRange(first, last uint64) error { return s.wal.DeleteRange(first, last) }

// IsMonotonic says that the log has no gaps (raft.MonotonicLogStore).
func (s *raftStore) IsMonotonic() bool { return s.wal.IsMonotonic() }

func (s *raftStore) Set(key, value []byte) error { return s.wal.Set(key, value) }

func (s *raftStore) Get(key []byte) ([]byte, error) { return s.wal.Get(key) }

func (s *raftStore) SetUint64(key []byte, value uint64) error {
	err := s.wal.SetUint64(key, value)
	s.fatal(err)
	return err
}

func (s *raftStore) GetUint64(key []byte) (uint64, error) { return s.wal.GetUint64(key) }

// raftConfig is the configuration of every node.
func raftConfig(id string, log raftLog) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(id)
	c.Logger = log
	c.ShutdownOnRemove = false // the owner stops it
	c.SnapshotThreshold = snapshotAfter
	c.TrailingLogs = trailing
	c.NoLegacyTelemetry = true
	return c
}

// server is a member in Raft's configuration. Its address is its ID again: the
// stream layer finds the real one in the view, so that a moved node needs no
// change of Raft's configuration.
func server(id string, suffrage raft.ServerSuffrage) raft.Server {
	return raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(id), Suffrage: suffrage}
}

// guard turns a panic, also one by a damaged file, into an error.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	return f()
}

// seedRaft makes a Raft directory whose only voter is the member id, and which
// begins with the state of f.
func seedRaft(dir, id string, f *fsm, log raftLog) error {
	return guard(func() (err error) {
		s, err := openStore(dir, log)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.close()) }()
		_, transport := raft.NewInmemTransport("")
		alone := raft.Configuration{Servers: []raft.Server{server(id, raft.Voter)}}
		config := raftConfig(id, log)
		if err := raft.BootstrapCluster(config, s, s, s.files, transport, alone); err != nil {
			return err
		}
		// Puts the state into a snapshot, and the log's only entry with it.
		return raft.RecoverCluster(config, f, s, s, s.files, transport, alone)
	})
}

// readLog applies all that a Raft directory holds to f, committed or not: what
// a lost leader had committed cannot be told from what it had not.
func readLog(dir string, f *fsm, log raftLog) error {
	return guard(func() (err error) {
		s, err := openStore(dir, log)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.close()) }()
		next, err := restoreNewest(s, f)
		if err != nil {
			return err
		}
		last, err := s.LastIndex()
		if err != nil {
			return err
		}
		for ; next <= last; next++ {
			var l raft.Log
			if err := s.GetLog(next, &l); err != nil {
				return fmt.Errorf("entry %d: %w", next, err)
			}
			if l.Type == raft.LogCommand {
				f.Apply(&l)
			}
		}
		return nil
	})
}

// restoreNewest restores the newest snapshot that can be read, and returns the
// index of the first entry after it.
func restoreNewest(s *raftStore, f *fsm) (next uint64, err error) {
	list, err := s.files.List()
	if err != nil {
		return 0, err
	}
	for _, meta := range list {
		var content io.ReadCloser
		if _, content, err = s.files.Open(meta.ID); err != nil {
			continue
		}
		if err = f.Restore(content); err == nil {
			return meta.Index + 1, nil
		}
	}
	if err == nil {
		err = errors.New("there is no snapshot")
	}
	return 0, err
}
