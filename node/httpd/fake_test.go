package httpd_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"chainmail/archive"
	"chainmail/archive/record"
	"chainmail/node/httpd"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const fakeStore = record.StoreID(0x4f2a9c1be0d37786)

// fakeArchive keeps messages in memory, and fails on request.
type fakeArchive struct {
	mu       sync.Mutex
	order    []record.Hash
	messages map[record.Hash]*record.Message
	bodies   map[record.Hash][]byte
	seq      record.Seq

	readErr   error               // of Resolve, Message and Messages
	damagedAt map[record.Hash]int // offset from which a body cannot be read
	beginErr  error
	writeErr  error
	commitErr error
	statsBug  bool // Stats panics
	verify    func(ctx context.Context, report func(archive.Progress)) error
}

func newFake() *fakeArchive {
	return &fakeArchive{messages: map[record.Hash]*record.Message{}, bodies: map[record.Hash][]byte{}, damagedAt: map[record.Hash]int{}}
}

// add archives a message an hour after the one before.
func (f *fakeArchive) add(raw string, e record.Envelope) record.Receipt {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := record.Hash(sha256.Sum256([]byte(raw)))
	f.seq++
	r := record.Receipt{
		Position: record.Position{Store: fakeStore, Seq: f.seq}, Hash: h, Size: int64(len(raw)),
		ReceivedAt: epoch.Add(time.Duration(f.seq-1) * time.Hour), Envelope: e,
	}
	m := f.messages[h]
	if m == nil {
		m = &record.Message{Hash: h, Size: r.Size}
		f.messages[h] = m
		f.bodies[h] = []byte(raw)
		f.order = append(f.order, h)
	}
	m.Receipts = append(m.Receipts, r)
	return r
}

func (f *fakeArchive) Resolve(id string) ([]record.Hash, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.readErr != nil {
		return nil, f.readErr
	}
	if len(id) < 4 {
		return nil, archive.ErrBadID
	}
	var direct, reports []record.Hash
	for _, h := range f.order {
		first := f.messages[h].Receipts[0]
		if first.Position.String() == id || strings.HasPrefix(h.String(), id) {
			direct = append(direct, h)
		}
		if j := first.Envelope.Journal; j != nil && strings.HasPrefix(j.Inner.String(), id) {
			reports = append(reports, h)
		}
	}
	switch {
	case len(direct) > 1:
		return nil, archive.ErrAmbiguous
	case len(direct) == 1:
		return direct, nil
	case len(reports) > 0:
		return reports, nil
	}
	return nil, archive.ErrNotFound
}

func (f *fakeArchive) Message(h record.Hash) (record.Message, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.messages[h]; m != nil {
		return *m, f.readErr
	}
	return record.Message{}, archive.ErrNotFound
}

func (f *fakeArchive) Body(h record.Hash) (io.ReadCloser, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	raw := f.bodies[h]
	if at, ok := f.damagedAt[h]; ok {
		damage := fmt.Errorf("%w: chunk 3 of %s", archive.ErrCorrupt, h)
		return io.NopCloser(io.MultiReader(bytes.NewReader(raw[:at]), failing{damage})), nil
	}
	return io.NopCloser(bytes.NewReader(raw)), nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func (f *fakeArchive) Messages(_ context.Context, q archive.Query) iter.Seq2[record.Message, error] {
	return func(yield func(record.Message, error) bool) {
		skip := q.After != ""
		var after []record.Hash
		if skip {
			var err error
			if after, err = f.Resolve(q.After); err != nil {
				yield(record.Message{}, err)
				return
			}
		}
		order := slices.Clone(f.order)
		if q.Newest {
			slices.Reverse(order)
		}
		for _, h := range order {
			m, err := f.Message(h)
			at := m.ReceivedAt()
			out := !q.Since.IsZero() && at.Before(q.Since) || !q.Until.IsZero() && !at.Before(q.Until)
			if !skip && !out && !yield(m, err) || err != nil {
				return
			}
			skip = skip && h != after[0]
		}
	}
}

func (f *fakeArchive) Verify(ctx context.Context, report func(archive.Progress)) error {
	return f.verify(ctx, report)
}

func (f *fakeArchive) Stats() archive.Stats {
	if f.statsBug {
		panic("a bug in Stats")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return archive.Stats{
		Store: fakeStore, Receipts: uint64(f.seq), Messages: uint64(len(f.order)), RawBytes: 10, StoredBytes: 5,
		Free: 100, MinFree: 10, InFlight: 1, MemoryLimit: 2,
		Scrub: archive.ScrubState{StartedAt: epoch, Checked: 1, Total: 2, Bad: 1, Findings: []archive.Finding{
			{Position: record.Position{Store: fakeStore, Seq: 1}, Problem: "unreadable", FoundAt: epoch},
		}},
	}
}

func (f *fakeArchive) begin(context.Context) (httpd.Draft, error) {
	return &fakeDraft{f: f}, f.beginErr
}

type fakeDraft struct {
	f   *fakeArchive
	raw bytes.Buffer
}

func (d *fakeDraft) Write(p []byte) (int, error) {
	if d.f.writeErr != nil {
		return 0, d.f.writeErr
	}
	return d.raw.Write(p)
}

func (d *fakeDraft) Commit(e record.Envelope) (record.Receipt, error) {
	if d.f.commitErr != nil {
		return record.Receipt{}, d.f.commitErr
	}
	return d.f.add(d.raw.String(), e), nil
}

func (d *fakeDraft) Discard() {}

var errDisk = errors.New("input/output error")
