package client

import "sync"

// Summary counts what became of the messages of an import or export.
type Summary struct {
	Added    uint64 // imported, or exported
	Existing uint64 // were there before
	Failed   uint64
	Bytes    int64     // of the messages that were added or existed
	Failures []Failure // the first maxFailures
}

const maxFailures = 100

// Failure is one message that was not transferred.
type Failure struct {
	Name string // in the source, or the SHA-256
	Err  error
}

// tally counts the results of several workers.
type tally struct {
	mu       sync.Mutex
	summary  Summary
	progress func(Summary)
}

// count notes one message of n bytes: failed, added, or there before.
func (t *tally) count(name string, added bool, n int64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &t.summary
	switch {
	case err != nil:
		s.Failed++
		if len(s.Failures) < maxFailures {
			s.Failures = append(s.Failures, Failure{name, err})
		}
	case added:
		s.Added++
		s.Bytes += n
	default:
		s.Existing++
		s.Bytes += n
	}
	if t.progress != nil {
		t.progress(*s)
	}
}
