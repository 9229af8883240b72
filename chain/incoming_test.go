package chain

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"chainmail/archive/record"
)

// tap is an intake that shows what comes.
type tap struct {
	gate      chan struct{} // each chunk waits until it is closed
	fail      int           // the chunk that is refused; 0: none
	chunks    int
	body      []byte
	receipts  []record.Seq
	entered   bool
	discarded bool
}

func newTap() *tap { return &tap{gate: make(chan struct{})} }

func (t *tap) Log(record.Log) error { return nil }

func (t *tap) Receipt(p record.Position, _ []byte, hasBody bool) (bool, error) {
	t.receipts = append(t.receipts, p.Seq)
	return hasBody, nil
}

func (t *tap) Chunk(b []byte) error {
	<-t.gate
	if t.chunks++; t.chunks == t.fail {
		return ErrCorrupt
	}
	t.body = append(t.body, b...)
	return nil
}

func (t *tap) Enter() error {
	t.entered = true
	return nil
}

func (t *tap) Sync() ([]record.StoreID, error) { return nil, nil }
func (t *tap) Discard()                        { t.discarded = true }

// counted counts what is read.
type counted struct {
	r io.Reader
	n int
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += n
	return n, err
}

// containerOf has one receipt with a body of chunks of these sizes.
func containerOf(t *testing.T, sizes ...int) (all, body []byte) {
	t.Helper()
	w := newContainerWriter(1<<30, nil)
	defer w.release()
	p := record.Position{Store: 7, Seq: 1}
	if err := w.receipt(p, testReceipt(p, "x"), true); err != nil {
		t.Fatal(err)
	}
	random := rand.NewChaCha8([32]byte{})
	for _, size := range sizes {
		chunk := make([]byte, size)
		_, _ = random.Read(chunk)
		if err := w.chunk(chunk); err != nil {
			t.Fatal(err)
		}
		body = append(body, chunk...)
	}
	return bytes.Clone(w.end()), body
}

// longContainer is one of several megabytes, in chunks of all sizes.
func longContainer(t *testing.T) (all, body []byte) {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	var sizes []int
	for sum := 0; sum < 6<<20; {
		size := random.IntN(100 << 10)
		if random.IntN(20) == 0 {
			size = random.IntN(maxFrame)
		}
		sizes = append(sizes, size)
		sum += size
	}
	return containerOf(t, sizes...)
}

func over() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// The reader is ahead of the intake, by so much and no more, and what it reads
// ahead does not disturb what is being taken in.
func TestIncomingReadsAhead(t *testing.T) {
	all, body := longContainer(t)
	synctest.Test(t, func(t *testing.T) {
		for range 2 { // the second one with used memory
			sink, spare := newTap(), newLoads()
			source := &counted{r: bytes.NewReader(all)}
			in := newIncoming(sink, spare)
			go in.read(newContainerReader(source), over())
			synctest.Wait()
			if least, most := loads*loadBytes, loads*(loadBytes+maxFrame); source.n < least || source.n > most {
				t.Errorf("%d bytes were read ahead, want %d to %d", source.n, least, most)
			}
			close(sink.gate)
			<-in.taken
			if in.err != nil || !sink.entered || sha256.Sum256(sink.body) != sha256.Sum256(body) {
				t.Errorf("%v, entered %v, %d bytes of %d", in.err, sink.entered, len(sink.body), len(body))
			}
			if len(spare) != loads {
				t.Errorf("%d loads are left", len(spare))
			}
		}
	})
}

// What a peer tells of logs, or in tiny frames, is bounded as bodies are.
func TestLoadBounds(t *testing.T) {
	logs := newContainerWriter(1<<30, nil)
	for i := range 100 {
		l := record.Log{Store: record.StoreID(i + 1), Placements: []record.Placement{{From: 1, Nodes: []string{strings.Repeat("n", loadBytes/10)}}}}
		if err := logs.log(l); err != nil {
			t.Fatal(err)
		}
	}
	tiny, _ := containerOf(t, make([]int, 2*loadFrames)...)
	for name, tt := range map[string]struct {
		container []byte
		most      int
	}{
		"logs":         {logs.end(), 10},
		"empty chunks": {tiny, loadFrames},
	} {
		l, r := &load{}, newContainerReader(bytes.NewReader(tt.container))
		if l.fill(r); len(l.frames) == 0 || len(l.frames) > tt.most || l.err != nil {
			t.Errorf("%s: %d frames in a load, %v", name, len(l.frames), l.err)
		}
	}
}

// A container waits for the one before, even a small one; reading does not.
func TestIncomingInOrder(t *testing.T) {
	const quarter = loadBytes / 4
	long, _ := containerOf(t, quarter, quarter, quarter, quarter, quarter)
	small, _ := testContainer(t, 1<<20, nil)
	synctest.Test(t, func(t *testing.T) {
		spare := newLoads()
		one, two := newTap(), newTap()
		close(two.gate)
		first, second := newIncoming(one, spare), newIncoming(two, spare)
		broken := io.MultiReader(bytes.NewReader(long[:len(long)-1]), iotest.ErrReader(errTest))
		first.read(newContainerReader(broken), over())
		second.read(newContainerReader(bytes.NewReader(small)), first.taken)
		synctest.Wait()
		if len(two.receipts) > 0 {
			t.Error("the second container is taken in before the first")
		}
		close(one.gate)
		<-second.taken
		if !errors.Is(first.err, errTest) || second.err != nil || len(two.receipts) != 2 {
			t.Errorf("%v; %v, receipts %v", first.err, second.err, two.receipts)
		}
	})
}

// Whatever goes wrong, nothing is entered, what came in is forgotten, and the
// connection's loads are ready for the next container.
func TestIncomingFails(t *testing.T) {
	all, _ := longContainer(t)
	for name, tt := range map[string]struct {
		source io.Reader
		fail   int
		want   error
		most   int // bytes read
	}{
		"connection":    {source: io.MultiReader(bytes.NewReader(all[:3<<20]), iotest.ErrReader(errTest)), want: errTest},
		"at once":       {source: iotest.ErrReader(errTest), want: errTest},
		"cut":           {source: bytes.NewReader(all[:len(all)-1]), want: errMalformed},
		"first chunk":   {source: bytes.NewReader(all), fail: 1, want: ErrCorrupt, most: 5 << 20},
		"further chunk": {source: bytes.NewReader(all), fail: 20, want: ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sink, spare := newTap(), newLoads()
				sink.fail = tt.fail
				source := &counted{r: tt.source}
				in := newIncoming(sink, spare)
				go in.read(newContainerReader(source), over())
				synctest.Wait()
				close(sink.gate)
				<-in.taken
				if !errors.Is(in.err, tt.want) || sink.entered || !sink.discarded || len(spare) != loads {
					t.Errorf("%v, entered %v, discarded %v, %d loads", in.err, sink.entered, sink.discarded, len(spare))
				}
				if tt.most > 0 && source.n > tt.most {
					t.Errorf("%d bytes were read of a container that is refused", source.n)
				}
			})
		})
	}
}

func TestExtend(t *testing.T) {
	var got, want record.Ranges
	for _, s := range []record.Seq{3, 4, 5, 9, 11, 12} {
		got = extend(got, s)
		for range 2 { // there and back again
			got = extend(retract(got), s)
		}
		want = want.Add(s)
		if got.String() != want.String() {
			t.Fatalf("%v, want %v", got, want)
		}
	}
}
