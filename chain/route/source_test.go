package route_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"chainmail/archive/record"
	"chainmail/chain/route"
)

const (
	ownStore  record.StoreID = 0xa
	peerStore record.StoreID = 0xb
)

// source is an archive in memory.
type source struct {
	mu       sync.Mutex
	logs     map[record.StoreID]*record.Log
	receipts map[record.Position]record.Receipt
	bodies   map[record.Hash][]byte
	changed  chan struct{}
	// fail may fail reading a receipt or a body.
	fail func(p record.Position) error
	// cut may end a body after that many bytes with an error.
	cut func(h record.Hash) (int, error)
}

func newSource() *source {
	return &source{
		logs:     map[record.StoreID]*record.Log{ownStore: {Store: ownStore, Origin: "a"}},
		receipts: map[record.Position]record.Receipt{}, bodies: map[record.Hash][]byte{},
		changed: make(chan struct{}),
	}
}

// add archives a mail in the own log, from a to b.
func (s *source) add(body string) record.Position {
	return s.put(record.Position{Store: ownStore}, body, "a@example.com", "b@example.com")
}

// put archives a mail at a position; sequence 0 means the next one.
func (s *source) put(p record.Position, body, from string, to ...string) record.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.logs[p.Store]
	if l == nil {
		l = &record.Log{Store: p.Store, Origin: "b"}
		s.logs[p.Store] = l
	}
	if p.Seq == 0 {
		p.Seq = l.Held.Last() + 1
	}
	hash := record.Hash(sha256.Sum256([]byte(body)))
	s.bodies[hash] = []byte(body)
	s.receipts[p] = record.Receipt{
		Position: p, ReceivedAt: time.Now().UTC(), Hash: hash, Size: int64(len(body)),
		Envelope: record.Envelope{From: from, To: to},
	}
	l.Held = l.Held.Add(p.Seq)
	close(s.changed)
	s.changed = make(chan struct{})
	return p
}

func (s *source) Store() record.StoreID { return ownStore }

func (s *source) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s *source) Logs() []record.Log {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []record.Log
	for _, l := range s.logs {
		all = append(all, *l)
	}
	return all
}

var errRot = errors.New("rot")

func (s *source) Receipt(p record.Position) (record.Receipt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		if err := s.fail(p); err != nil {
			return record.Receipt{}, err
		}
	}
	r, ok := s.receipts[p]
	if !ok {
		return record.Receipt{}, fmt.Errorf("%v is not held", p)
	}
	return r, nil
}

func (s *source) Body(h record.Hash) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body := s.bodies[h]
	if s.cut != nil {
		if n, err := s.cut(h); err != nil {
			return io.NopCloser(io.MultiReader(bytes.NewReader(body[:n]), failing{err})), nil
		}
	}
	return io.NopCloser(bytes.NewReader(body)), nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// bench is a source, a route and a receiver.
type bench struct {
	t *testing.T
	*source
	*receiver
	dir     string
	change  func(*route.Options)
	route   *route.Route
	stop    func()
	written int        // letters
	mu2     sync.Mutex // of what a test and its receiver share
}

// options are those of a route from the source to the receiver.
func (b *bench) options() route.Options {
	o := route.Options{
		Name: "second", Target: "receiver.test:25", TLS: route.TLSNone, From: route.FromBeginning,
		Hostname: "node.test", Dir: b.dir, Source: b.source, Dial: b.Dial, Concurrency: 1,
		Logger: slog.New(slog.DiscardHandler),
	}
	if b.change != nil {
		b.change(&o)
	}
	return o
}

// start makes the route and runs it.
func (b *bench) start() {
	b.t.Helper()
	var err error
	if b.route, err = route.New(b.options()); err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error)
	go func() { done <- b.route.Run(ctx) }()
	b.stop = func() {
		b.t.Helper()
		b.stop = func() {}
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("Run: %v", err)
		}
	}
}

// inVirtualTime gives a test a bench; it starts the route itself.
func inVirtualTime(t *testing.T, test func(b *bench)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, source: newSource(), receiver: &receiver{extensions: []string{"PIPELINING", "CHUNKING", "8BITMIME", "SIZE 0"}}, dir: dir, stop: func() {}}
		test(b)
		b.stop()
	})
}

// idle waits until nothing is left to do, and fails after a day.
func (b *bench) idle() {
	b.t.Helper()
	for range 24 * 3600 {
		synctest.Wait()
		if s := b.route.Status(); s.Backlog == 0 {
			return
		}
		time.Sleep(time.Second)
	}
	b.t.Fatalf("never done: %+v\n%+v", b.route.Status(), b.route.Deferred(3))
}

// wantOnce checks that every mail arrived, and none twice.
func (b *bench) wantOnce(bodies ...string) {
	b.t.Helper()
	b.want(1, bodies...)
}

// want checks that every mail arrived, and none more often than most.
func (b *bench) want(most int, bodies ...string) {
	b.t.Helper()
	got := b.receiver.bodies()
	for _, body := range bodies {
		if n := got[body]; n < 1 || n > most {
			b.t.Errorf("%.40q arrived %d times", body, n)
		}
		delete(got, body)
	}
	for body, n := range got {
		b.t.Errorf("%.40q arrived %d times and was not expected", body, n)
	}
}

// letters are n mails.
func (b *bench) letters(n int) (bodies []string) {
	for range n {
		i := b.written
		b.written++
		body := fmt.Sprintf("Subject: mail %d\r\n\r\n.dot\r\n..\r\n.\r\nend %d\r\n", i, i)
		b.add(body)
		bodies = append(bodies, body)
		time.Sleep(time.Millisecond)
	}
	return bodies
}
