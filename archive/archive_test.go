package archive_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"chainmail/archive"
	"chainmail/archive/record"
)

func open(t *testing.T, o archive.Options) *archive.Archive {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	o.MinFree = max(o.MinFree, 1)
	if o.OnFatal == nil {
		o.OnFatal = func(err error) { t.Errorf("fatal: %v", err) }
	}
	a, err := archive.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return a
}

// put archives one message, written in pieces of random size.
func put(a *archive.Archive, msg []byte, e record.Envelope) (record.Receipt, error) {
	d := a.NewDraft(context.Background())
	defer d.Discard()
	for rest := msg; len(rest) > 0; {
		n := min(len(rest), 1+rand.IntN(100_000))
		if _, err := d.Write(rest[:n]); err != nil {
			return record.Receipt{}, err
		}
		rest = rest[n:]
	}
	return d.Commit(e)
}

func mustPut(t *testing.T, a *archive.Archive, msg []byte, e record.Envelope) record.Receipt {
	t.Helper()
	r, err := put(a, msg, e)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func get(a *archive.Archive, h record.Hash) ([]byte, error) {
	body, err := a.Body(h)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

// message makes n bytes that compress like text and differ by seed.
func message(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	words := strings.Fields("the quick brown fox jumps over a lazy dog while mail is kept for years\r\n and nobody alters it")
	b := fmt.Appendf(nil, "Subject: message %d\r\n\r\n", seed)
	for len(b) < n {
		b = append(append(b, words[rng.IntN(len(words))]...), " \r\n"[rng.IntN(3)])
	}
	return b[:n]
}

// noise makes n bytes that do not compress.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	key := sha256.Sum256(fmt.Append(nil, seed))
	block, err := aes.NewCipher(key[:16])
	if err != nil {
		panic(err)
	}
	cipher.NewCTR(block, key[16:]).XORKeyStream(b, b)
	return b
}

func verify(t *testing.T, a *archive.Archive) (findings []archive.Finding) {
	t.Helper()
	err := a.Verify(context.Background(), func(p archive.Progress) {
		if p.Finding != nil {
			findings = append(findings, *p.Finding)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return findings
}

func list(t *testing.T, a *archive.Archive, q archive.Query) (ms []record.Message) {
	t.Helper()
	for m, err := range a.Messages(context.Background(), q) {
		if err != nil {
			t.Fatal(err)
		}
		ms = append(ms, m)
	}
	return ms
}

func TestExactBytesOfEverySize(t *testing.T) {
	dir := t.TempDir()
	a := open(t, archive.Options{Dir: dir})
	var want [][]byte
	for i, n := range []int{0, 1, 4096, 64<<10 - 1, 64 << 10, 64<<10 + 1, 256<<10 - 1, 256 << 10, 256<<10 + 1, 1 << 20, 5<<20 + 3} {
		want = append(want, message(uint64(i), n), noise(uint64(i), n))
	}
	want = append(want, []byte("\x00\n.\r\n\r\r\n"), bytes.Repeat([]byte("x"), 3<<20))
	for i, msg := range want {
		r := mustPut(t, a, msg, record.Envelope{Connector: "test"})
		if r.Hash != sha256.Sum256(msg) || r.Size != int64(len(msg)) {
			t.Fatalf("message %d: receipt %+v does not describe it", i, r)
		}
	}
	check := func(a *archive.Archive) {
		t.Helper()
		for i, msg := range want {
			if got, err := get(a, sha256.Sum256(msg)); err != nil || !bytes.Equal(got, msg) {
				t.Fatalf("message %d of %d bytes: got %d bytes, %v", i, len(msg), len(got), err)
			}
		}
		if f := verify(t, a); len(f) > 0 {
			t.Fatalf("verify: %v", f)
		}
	}
	check(a)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	check(open(t, archive.Options{Dir: dir}))
}

func TestReceiptsOfOneMessage(t *testing.T) {
	reg := prometheus.NewRegistry()
	a := open(t, archive.Options{Registerer: reg})
	msg := noise(1, 3<<20)
	want := []record.Receipt{
		mustPut(t, a, msg, record.Envelope{From: "a@example.com", To: []string{"b@example.com"}, Connector: "smtp"}),
		mustPut(t, a, msg, record.Envelope{From: "a@example.com", To: []string{"c@example.com"}, Connector: "smtp"}),
	}
	other := mustPut(t, a, message(2, 100), record.Envelope{Connector: "smtp"})
	m, err := a.Message(want[0].Hash)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, m.Receipts); d != "" {
		t.Errorf("receipts (-want +got):\n%s", d)
	}
	if want[0].Body != want[1].Body {
		t.Errorf("bodies %d and %d: the message is stored twice", want[0].Body, want[1].Body)
	}
	if ms := list(t, a, archive.Query{}); len(ms) != 2 || ms[0].Hash != m.Hash || ms[1].Hash != other.Hash {
		t.Errorf("list gives %d messages: %v", len(ms), ms)
	}
	s := a.Stats()
	if s.Receipts != 3 || s.Messages != 2 || s.RawBytes != 3<<20+100 {
		t.Errorf("stats: %+v", s)
	}
	if n, err := testutil.GatherAndCount(reg); err != nil || n == 0 {
		t.Errorf("metrics: %d, %v", n, err)
	}
	if p, err := testutil.GatherAndLint(reg); err != nil || len(p) > 0 {
		t.Errorf("metrics lint: %v, %v", p, err)
	}
	if f := verify(t, a); len(f) > 0 {
		t.Errorf("verify: %v", f)
	}
}

func TestResolve(t *testing.T) {
	a := open(t, archive.Options{})
	inner := record.Hash{0xab, 0xcd}
	var rs []record.Receipt
	for i := range 40 {
		e := record.Envelope{Connector: "test"}
		if i < 2 {
			e.Journal = &record.Journal{Inner: inner}
		}
		rs = append(rs, mustPut(t, a, message(uint64(i), 50+i), e))
	}
	full := rs[5].Hash.String()
	for id, want := range map[string][]record.Hash{
		full:                    {rs[5].Hash},
		strings.ToUpper(full):   {rs[5].Hash},
		full[:17]:               {rs[5].Hash},
		rs[5].Position.String(): {rs[5].Hash},
	} {
		if got, err := a.Resolve(id); err != nil || !cmp.Equal(got, want) {
			t.Errorf("Resolve(%q) = %v, %v", id, got, err)
		}
	}
	for _, id := range []string{inner.String(), inner.String()[:6]} {
		if got, err := a.Resolve(id); err != nil || len(got) != 2 {
			t.Errorf("Resolve(%q), a message inside two reports = %v, %v", id, got, err)
		}
	}
	for id, want := range map[string]error{
		"":                          archive.ErrBadID,
		"abc":                       archive.ErrBadID,
		"xyz12":                     archive.ErrBadID,
		full + "0":                  archive.ErrBadID,
		"1:1":                       archive.ErrBadID,
		"0000000000000001:1":        archive.ErrNotFound,
		a.Store().String() + ":41":  archive.ErrNotFound,
		record.Hash{1}.String():     archive.ErrNotFound,
		record.Hash{}.String()[:60]: archive.ErrNotFound,
	} {
		if got, err := a.Resolve(id); !errors.Is(err, want) {
			t.Errorf("Resolve(%q) = %v, %v; want %v", id, got, err, want)
		}
	}
}

// TestAmbiguousPrefix looks for two messages that begin with the same four
// digits, as soon happens among a few hundred.
func TestAmbiguousPrefix(t *testing.T) {
	a := open(t, archive.Options{Disk: archive.NewDisk(), Dir: "a"})
	seen := map[string]bool{}
	for i := range uint64(5000) {
		msg := message(i, 40)
		h := record.Hash(sha256.Sum256(msg)).String()
		if seen[h[:4]] {
			mustPut(t, a, msg, record.Envelope{})
			if _, err := a.Resolve(h[:4]); !errors.Is(err, archive.ErrAmbiguous) {
				t.Fatalf("Resolve(%q): %v, want ErrAmbiguous", h[:4], err)
			}
			return
		}
		seen[h[:4]] = true
		mustPut(t, a, msg, record.Envelope{})
	}
	t.Fatal("no two messages shared four digits")
}

func TestListByTimeAndAfter(t *testing.T) {
	a := open(t, archive.Options{})
	var rs []record.Receipt
	for i := range 600 { // more than two pages
		rs = append(rs, mustPut(t, a, message(uint64(i), 60), record.Envelope{}))
	}
	hashes := func(q archive.Query) (hs []record.Hash) {
		for _, m := range list(t, a, q) {
			hs = append(hs, m.Hash)
		}
		return hs
	}
	want := func(from, to int) (hs []record.Hash) {
		for _, r := range rs[from:to] {
			hs = append(hs, r.Hash)
		}
		return hs
	}
	newest := func(from, to int) []record.Hash {
		hs := want(from, to)
		slices.Reverse(hs)
		return hs
	}
	for name, tt := range map[string]struct {
		q    archive.Query
		want []record.Hash
	}{
		"all":         {archive.Query{}, want(0, 600)},
		"since":       {archive.Query{Since: rs[10].ReceivedAt}, want(10, 600)},
		"until":       {archive.Query{Until: rs[10].ReceivedAt}, want(0, 10)},
		"window":      {archive.Query{Since: rs[3].ReceivedAt, Until: rs[300].ReceivedAt}, want(3, 300)},
		"after":       {archive.Query{After: rs[299].Position.String()}, want(300, 600)},
		"after hash":  {archive.Query{After: rs[299].Hash.String(), Until: rs[301].ReceivedAt}, want(300, 301)},
		"future":      {archive.Query{Since: time.Now().Add(time.Hour)}, nil},
		"before 1970": {archive.Query{Since: time.Unix(-1e9, 0), Until: time.Unix(-1, 0)}, nil},
		"upside down": {archive.Query{After: rs[20].Hash.String(), Until: rs[10].ReceivedAt}, nil},

		"newest":             {archive.Query{Newest: true}, newest(0, 600)},
		"newest since":       {archive.Query{Newest: true, Since: rs[590].ReceivedAt}, newest(590, 600)},
		"newest window":      {archive.Query{Newest: true, Since: rs[3].ReceivedAt, Until: rs[300].ReceivedAt}, newest(3, 300)},
		"newest after":       {archive.Query{Newest: true, After: rs[299].Position.String()}, newest(0, 299)},
		"newest after until": {archive.Query{Newest: true, After: rs[299].Hash.String(), Until: rs[10].ReceivedAt}, newest(0, 10)},
		"newest upside down": {archive.Query{Newest: true, After: rs[10].Hash.String(), Since: rs[20].ReceivedAt}, nil},
	} {
		if d := cmp.Diff(tt.want, hashes(tt.q)); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
	for _, err := range a.Messages(t.Context(), archive.Query{After: "0000000000000001:1"}) {
		if !errors.Is(err, archive.ErrNotFound) {
			t.Errorf("after an unknown message: %v", err)
		}
	}
}

// TestListWhileMailArrives reads everything in small pages, in both orders,
// while several clients hand in more, some of it a second time.
func TestListWhileMailArrives(t *testing.T) {
	for _, newest := range []bool{false, true} {
		t.Run(fmt.Sprintf("newest=%v", newest), func(t *testing.T) {
			a := open(t, archive.Options{Disk: archive.NewDisk(), Dir: "a"})
			var want, got []record.Hash
			for i := range uint64(300) {
				want = append(want, mustPut(t, a, message(i, 60), record.Envelope{}).Hash)
			}
			read := func(size int) (n int) {
				t.Helper()
				q := archive.Query{Newest: newest}
				if len(got) > 0 {
					q.After = got[len(got)-1].String()
				}
				for m, err := range a.Messages(t.Context(), q) {
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, m.Hash)
					if n++; n == size {
						break
					}
				}
				return n
			}

			read(7)
			var clients sync.WaitGroup
			for c := range uint64(4) {
				clients.Go(func() {
					for i := range uint64(100) {
						_, err := put(a, message(1000*(c+1)+i, 60+int(i)*100), record.Envelope{})
						_, again := put(a, message(i, 60), record.Envelope{})
						if err := errors.Join(err, again); err != nil {
							t.Error(err)
						}
					}
				})
			}
			for range 60 {
				read(7)
			}
			clients.Wait()
			for read(7) > 0 {
			}
			if newest {
				slices.Reverse(want)
			} else {
				want = want[:0]
				for _, m := range list(t, a, archive.Query{}) {
					want = append(want, m.Hash)
				}
				if len(want) != 700 {
					t.Errorf("%d messages in all, want 700", len(want))
				}
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("pages give %d messages, want %d (-want +got):\n%s", len(got), len(want), d)
			}
		})
	}
}

// TestTimesFollowTheLog: a listing that is resumed misses a message whose time
// is earlier than that of one listed before it came.
func TestTimesFollowTheLog(t *testing.T) {
	a := open(t, archive.Options{Disk: archive.NewDisk(), Dir: "a"})
	receipts := make([]record.Receipt, 400)
	var clients sync.WaitGroup
	for c := range 8 {
		clients.Go(func() {
			for i := c; i < len(receipts); i += 8 {
				r, err := put(a, noise(uint64(i), 60+i%8/4*100_000), record.Envelope{}) // some take long to compress
				if err != nil {
					t.Error(err)
				}
				receipts[i] = r
			}
		})
	}
	clients.Wait()
	slices.SortFunc(receipts, func(r, s record.Receipt) int { return r.Position.Compare(s.Position) })
	for i, r := range receipts[1:] {
		if r.ReceivedAt.Before(receipts[i].ReceivedAt) {
			t.Fatalf("receipt %v is of %v, and %v before it of %v", r.Position, r.ReceivedAt, receipts[i].Position, receipts[i].ReceivedAt)
		}
	}
}

func TestRefusalsNameTheDirectory(t *testing.T) {
	dir := t.TempDir()
	a := open(t, archive.Options{Dir: dir})
	if _, err := archive.Open(archive.Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("second open: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := put(a, []byte("x"), record.Envelope{}); !errors.Is(err, archive.ErrClosed) {
		t.Errorf("put after close: %v", err)
	}
	if _, err := archive.OpenReadOnly(filepath.Join(dir, "none"), nil); err == nil || !strings.Contains(err.Error(), "no archive") {
		t.Errorf("read-only open of nothing: %v", err)
	}
	ro, err := archive.OpenReadOnly(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if f := verify(t, ro); len(f) > 0 {
		t.Errorf("verify: %v", f)
	}
	if err := ro.Close(); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		if err := os.Chmod(dir, 0o500); err != nil {
			t.Fatal(err)
		}
		if _, err := archive.Open(archive.Options{Dir: filepath.Join(dir, "sub")}); err == nil || !strings.Contains(err.Error(), "permission") {
			t.Errorf("open without permission: %v", err)
		}
	}
}

func TestDiskFull(t *testing.T) { synctest.Test(t, testDiskFull) }

func testDiskFull(t *testing.T) {
	free := int64(100 << 20)
	a := open(t, archive.Options{Dir: "archive", Disk: archive.NewDisk(), MinFree: 50 << 20, FreeSpace: func(string) (int64, error) { return free, nil }})
	first := mustPut(t, a, message(1, 1000), record.Envelope{})
	wait := func() { // the guard asks twice a second
		time.Sleep(510 * time.Millisecond)
	}
	free = 10 << 20
	wait()
	if err := a.Accepting(); !errors.Is(err, archive.ErrDiskFull) || !strings.Contains(err.Error(), "10 MiB free, the limit is 50 MiB") {
		t.Errorf("accepting: %v", err)
	}
	if _, err := put(a, message(2, 1000), record.Envelope{}); !errors.Is(err, archive.ErrDiskFull) {
		t.Errorf("put of small mail: %v", err)
	}
	if _, err := put(a, noise(3, 3<<20), record.Envelope{}); !errors.Is(err, archive.ErrDiskFull) {
		t.Errorf("put of large mail: %v", err)
	}
	if _, err := get(a, first.Hash); err != nil {
		t.Errorf("reading while full: %v", err)
	}
	free = 51 << 20
	wait()
	if err := a.Accepting(); !errors.Is(err, archive.ErrDiskFull) {
		t.Errorf("a little more than the limit: %v, want still full", err)
	}
	free = 60 << 20
	wait()
	mustPut(t, a, message(2, 1000), record.Envelope{})
	if ms := list(t, a, archive.Query{}); len(ms) != 2 {
		t.Errorf("%d messages, want 2", len(ms))
	}
}

// TestStartOnAFullDiskChangesNothing: a supervisor may start a node again and
// again on a full disk, and every attempt must leave the files as they are.
func TestStartOnAFullDiskChangesNothing(t *testing.T) {
	disk := archive.NewDisk()
	free := int64(1 << 40)
	o := archive.Options{Dir: "archive", Disk: disk, FreeSpace: func(string) (int64, error) { return free, nil }}
	a := open(t, o)
	r := mustPut(t, a, message(1, 1000), record.Envelope{})
	crashed := disk.Crash(100, 1)
	o.Disk = crashed
	crashed.OnOp(func(op archive.Op) error {
		if op.Kind == archive.OpWrite || op.Kind == archive.OpSync {
			t.Errorf("%s was written", op.Path)
		}
		return nil
	})
	free = 60 << 20
	if _, err := archive.Open(o); !errors.Is(err, archive.ErrDiskFull) || !strings.Contains(err.Error(), "needs 65 MiB, it has 60 MiB") {
		t.Errorf("open on a full disk: %v", err)
	}
	crashed.OnOp(func(archive.Op) error { return nil })
	free = 1 << 40
	if _, err := get(open(t, o), r.Hash); err != nil {
		t.Error(err)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	const limit = 8 << 20
	a := open(t, archive.Options{MemoryInFlight: limit, MemoryWait: time.Millisecond})
	var drafts []*archive.Draft
	busy := 0
	for i := range 64 {
		d := a.NewDraft(t.Context())
		drafts = append(drafts, d)
		switch _, err := d.Write(message(uint64(i), 300<<10)); {
		case errors.Is(err, archive.ErrBusy):
			busy++
			d.Discard()
		case err != nil:
			t.Fatal(err)
		}
		if s := a.Stats(); s.InFlight > limit || s.MemoryLimit != limit {
			t.Fatalf("%d bytes in flight, limit %d", s.InFlight, s.MemoryLimit)
		}
	}
	if busy == 0 || busy == 64 {
		t.Fatalf("%d of 64 drafts found no memory", busy)
	}
	for _, d := range drafts {
		d.Discard()
		d.Discard()
	}
	if n := a.Stats().InFlight; n != 0 {
		t.Fatalf("%d bytes in flight after all drafts ended", n)
	}
	mustPut(t, a, message(1, 1<<20), record.Envelope{})
	if _, err := archive.Open(archive.Options{Dir: t.TempDir(), MemoryInFlight: 1}); err == nil {
		t.Error("an archive without memory opens")
	}
}

func TestDiscardedMailLeavesNothing(t *testing.T) {
	a := open(t, archive.Options{})
	for _, n := range []int{0, 100, 300 << 10, 4 << 20} {
		d := a.NewDraft(t.Context())
		if _, err := d.Write(noise(uint64(n), n)); err != nil {
			t.Fatal(err)
		}
		d.Discard()
		if _, err := d.Commit(record.Envelope{}); err == nil {
			t.Error("a discarded draft was committed")
		}
	}
	r := mustPut(t, a, message(1, 10), record.Envelope{})
	if ms := list(t, a, archive.Query{}); len(ms) != 1 || r.Position.Seq != 1 {
		t.Errorf("%d messages, receipt %v", len(ms), r.Position)
	}
}
