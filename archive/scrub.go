package archive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"chainmail/archive/record"
)

// ScrubState tells how far the background check is.
type ScrubState struct {
	StartedAt  time.Time // of the running pass; zero before the first
	FinishedAt time.Time // of the last whole pass; zero before its end
	Checked    uint64    // receipts of the running pass
	Total      uint64
	Bad        uint64    // receipts that are known to be damaged
	Findings   []Finding // the first maxFindings of them
}

const (
	maxFindings = 100
	emptyWait   = time.Minute // before an empty archive is looked at again
)

// scrubber reads every body once in a period, so that a disk that rots is
// noticed while there are other copies. Its place in the log survives
// restarts; its findings, and those of Verify, stay until a later check of the
// same receipt is well.
type scrubber struct {
	mu    sync.Mutex
	pass  scrubPass
	found map[record.Position]*Finding
	bad   map[record.StoreID]record.Ranges // positions of found; nil when it has changed since
}

// scrubPass is the value of the key metaScrub, in JSON.
type scrubPass struct {
	StartedAt  time.Time       `json:"started_at"`
	FinishedAt time.Time       `json:"finished_at"`
	Done       bool            `json:"done"` // the pass is over; the next begins a period after StartedAt
	Next       record.Position `json:"next"` // the receipt to check next
	Checked    uint64          `json:"checked"`
	Total      uint64          `json:"total"` // receipts when the pass began
	Bytes      int64           `json:"bytes"` // read in this pass
	Goal       int64           `json:"goal"`  // bytes of messages when the pass began
}

func (s *scrubber) load(a *Archive) error {
	s.pass.Done = true
	s.found = map[record.Position]*Finding{}
	v, err := a.get(metaScrub)
	if err == nil {
		err = json.Unmarshal(v, &s.pass)
	}
	if err != nil && !errors.Is(err, pebble.ErrNotFound) {
		a.log.Warn("the place of the background check is lost; it begins anew", "err", err)
		s.pass = scrubPass{Done: true}
	}
	err = a.scan([]byte{kindFinding}, nil, func(k, v []byte) error {
		f := new(Finding)
		s.found[positionAt(k)] = f
		return json.Unmarshal(v, f)
	})
	if isDamage(err) {
		a.log.Error("findings of earlier checks cannot be read: the next pass makes them anew", "dir", a.opts.Dir, "err", err)
		return nil
	}
	return err
}

// run makes pass after pass until ctx ends.
func (s *scrubber) run(ctx context.Context, a *Archive) error {
	for ctx.Err() == nil {
		pass := s.current()
		if pass.Done {
			if !sleep(ctx, time.Until(pass.StartedAt.Add(a.opts.ScrubPeriod))) {
				return nil
			}
			if pass = s.begin(a); pass.Total == 0 {
				if !sleep(ctx, emptyWait) {
					return nil
				}
				continue
			}
		}
		if err := s.finish(ctx, a, pass); err != nil {
			return fmt.Errorf("background check: %w", err)
		}
	}
	return nil
}

// begin starts a pass over what the logs hold now.
func (s *scrubber) begin(a *Archive) scrubPass {
	pass := scrubPass{StartedAt: time.Now().UTC(), FinishedAt: s.current().FinishedAt}
	now := a.sight()
	for _, store := range now.stores() {
		pass.Total += now.held(store).Count()
	}
	for _, state := range a.snapshot() {
		pass.Goal += int64(state.rawBytes)
	}
	return pass
}

// finish goes on with a pass to its end, or until ctx ends.
func (s *scrubber) finish(ctx context.Context, a *Archive, pass scrubPass) error {
	defer func() { s.save(a, pass) }()
	for saved := time.Now(); pass.Checked < pass.Total; {
		p, ok := a.sight().next(pass.Next)
		if !ok {
			break
		}
		n, finding, err := a.check(p)
		if err != nil {
			return err
		}
		if finding != nil {
			a.log.Error("the background check found a damaged receipt", "store", p.Store, "seq", p.Seq, "err", finding.Problem)
		}
		pass.Next = record.Position{Store: p.Store, Seq: p.Seq + 1}
		pass.Checked++
		pass.Bytes += n
		a.metrics.scrubbed.Add(float64(n))
		s.advance(pass)
		if time.Since(saved) > time.Minute {
			saved = time.Now()
			s.save(a, pass)
		}
		if !sleep(ctx, pass.wait(time.Now(), a.opts.ScrubPeriod)) {
			return nil
		}
	}
	pass.Done, pass.FinishedAt = true, time.Now().UTC()
	return nil
}

// wait is how long the pass must rest so that it ends no sooner than a period
// after it began; short rests are put off until they add up.
func (p *scrubPass) wait(now time.Time, period time.Duration) time.Duration {
	part := float64(p.Checked) / float64(max(p.Total, 1))
	if p.Goal > 0 {
		part = (part + float64(p.Bytes)/float64(p.Goal)) / 2
	}
	due := p.StartedAt.Add(time.Duration(min(part, 1) * float64(period)))
	if rest := due.Sub(now); rest > 20*time.Millisecond {
		return rest
	}
	return 0
}

func (s *scrubber) current() scrubPass {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pass
}

func (s *scrubber) advance(pass scrubPass) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pass = pass
}

func (s *scrubber) save(a *Archive, pass scrubPass) {
	s.advance(pass)
	if done, err := a.use(); err == nil {
		defer done()
		a.put(metaScrub, encodeJSON(pass))
	}
}

// record keeps a finding; clear takes one back.
func (s *scrubber) record(a *Archive, f *Finding) {
	s.mu.Lock()
	known := s.found[f.Position] != nil
	s.found[f.Position] = f
	if !known {
		s.bad = nil
	}
	s.mu.Unlock()
	a.put(findingKey(f.Position), encodeJSON(f))
	if !known {
		a.changed.wake()
	}
}

func (s *scrubber) clear(a *Archive, p record.Position) {
	if s.finding(p) == nil {
		return
	}
	s.mu.Lock()
	delete(s.found, p)
	s.bad = nil
	s.mu.Unlock()
	a.put(findingKey(p), nil)
	a.changed.wake()
}

// damaged are the receipts of a log that have findings.
func (s *scrubber) damaged(store record.StoreID) record.Ranges {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bad == nil {
		s.bad = map[record.StoreID]record.Ranges{}
		for _, f := range s.sorted(func(record.Position) bool { return true }) {
			s.bad[f.Position.Store] = appendSeq(s.bad[f.Position.Store], f.Position.Seq)
		}
	}
	return s.bad[store]
}

// appendSeq adds a number that is larger than all of a set, in the set's own
// memory.
func appendSeq(r record.Ranges, seq record.Seq) record.Ranges {
	if n := len(r); n > 0 && r[n-1].Last+1 == seq {
		r[n-1].Last = seq
		return r
	}
	return append(r, record.Range{First: seq, Last: seq})
}

// sharing are the findings about a message.
func (s *scrubber) sharing(h record.Hash) []Finding {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sorted(func(p record.Position) bool { return s.found[p].Hash == h })
}

// finding is what is known of a receipt; nil for nothing.
func (s *scrubber) finding(p record.Position) *Finding {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.found[p]
}

func (s *scrubber) state() ScrubState {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := ScrubState{
		StartedAt: s.pass.StartedAt, FinishedAt: s.pass.FinishedAt,
		Checked: s.pass.Checked, Total: s.pass.Total, Bad: uint64(len(s.found)),
	}
	st.Findings = s.sorted(func(record.Position) bool { return true })
	st.Findings = st.Findings[:min(len(st.Findings), maxFindings)]
	return st
}

// beyond gives the findings about receipts that are not in their logs.
func (s *scrubber) beyond(now sight) []Finding {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sorted(func(p record.Position) bool { return !now.has(p) })
}

func (s *scrubber) sorted(want func(record.Position) bool) (fs []Finding) {
	for p, f := range s.found {
		if want(p) {
			fs = append(fs, *f)
		}
	}
	slices.SortFunc(fs, func(x, y Finding) int { return x.Position.Compare(y.Position) })
	return fs
}

// put sets a key, or deletes it when v is nil, some time soon: what the
// scrubber knows may be lost in a crash. A read-only archive keeps nothing.
func (a *Archive) put(k, v []byte) {
	if a.readOnly {
		return
	}
	b := a.db.NewBatch()
	defer b.Close()
	var err error
	if v == nil {
		err = b.Delete(k, nil)
	} else {
		err = b.Set(k, v, nil)
	}
	if err != nil {
		panic(fmt.Sprintf("archive: batch: %v", err)) // it only grows in memory
	}
	a.apply(b, pebble.NoSync)
}

func encodeJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("archive: %T: %v", v, err)) // plain fields always encode
	}
	return b
}

// sleep waits for d; false when ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
