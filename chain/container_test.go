package chain

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"chainmail/archive/record"
)

var errTest = errors.New("of the test")

func testReceipt(p record.Position, body string) []byte {
	return record.AppendReceipt(nil, &record.Receipt{
		Position: p, ReceivedAt: time.Unix(1000, 0), Size: int64(len(body)), Body: 1, Hash: record.Hash{1},
		Envelope: record.Envelope{From: "a@b", To: []string{"c@d"}},
	})
}

// testContainer has two receipts of one log, one with a body of two chunks.
func testContainer(t testing.TB, limit int, change func(w *containerWriter)) (all []byte, segments int) {
	t.Helper()
	var out bytes.Buffer
	w := newContainerWriter(limit, func(b []byte) error {
		segments++
		out.Write(b)
		return nil
	})
	p := record.Position{Store: 7, Seq: 41}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(w.log(record.Log{Store: 7, Origin: "a", Placements: []record.Placement{{From: 1, Nodes: []string{"a", "b"}}}, Held: record.Of(1, 99)}))
	must(w.receipt(p, testReceipt(p, "first chunksecond"), true))
	must(w.chunk([]byte("first chunk")))
	must(w.chunk([]byte("second")))
	if change != nil {
		change(w)
	}
	p.Seq++
	must(w.receipt(p, testReceipt(p, "first chunksecond"), false))
	out.Write(w.end())
	return out.Bytes(), segments
}

// readAll gives a line for each frame.
func readAll(r io.Reader) (lines []string, err error) {
	c := newContainerReader(r)
	for {
		f, err := c.next()
		switch {
		case err == io.EOF:
			return lines, nil
		case err != nil:
			return lines, err
		case f.kind == frameLog:
			lines = append(lines, "log "+f.log.Store.String()+" "+f.log.Origin)
		case f.kind == frameReceipt:
			lines = append(lines, "receipt "+f.position.String()+map[bool]string{true: " with body"}[f.hasBody])
		case f.kind == frameChunk:
			lines = append(lines, "chunk "+string(f.chunk))
		}
	}
}

var testFrames = []string{
	"log 0000000000000007 a", "receipt 0000000000000007:41 with body", "chunk first chunk", "chunk second", "receipt 0000000000000007:42",
}

func TestContainerRoundTrip(t *testing.T) {
	for _, limit := range []int{1 << 20, 100, 1} {
		all, segments := testContainer(t, limit, nil)
		if (limit == 1<<20) != (segments == 0) {
			t.Errorf("limit %d: %d segments", limit, segments)
		}
		for _, r := range []io.Reader{bytes.NewReader(all), iotest.OneByteReader(bytes.NewReader(all)), iotest.DataErrReader(bytes.NewReader(all))} {
			lines, err := readAll(r)
			if err != nil || strings.Join(lines, "\n") != strings.Join(testFrames, "\n") {
				t.Errorf("%q, %v", lines, err)
			}
		}
	}
}

func TestContainerSkipsWhatItDoesNotKnow(t *testing.T) {
	all, _ := testContainer(t, 1<<20, func(w *containerWriter) {
		w.head('?', 6)
		w.buf.WriteString("future")
	})
	if lines, err := readAll(bytes.NewReader(all)); err != nil || len(lines) != len(testFrames) {
		t.Errorf("%q, %v", lines, err)
	}
}

func TestContainerTakesBack(t *testing.T) {
	want, _ := testContainer(t, 1<<20, nil)
	got, _ := testContainer(t, 1<<20, func(w *containerWriter) {
		mark := w.size()
		p := record.Position{Store: 7, Seq: 99}
		_ = w.receipt(p, testReceipt(p, "x"), true)
		_ = w.chunk([]byte("half a body"))
		w.truncate(mark)
	})
	if !bytes.Equal(got, want) {
		t.Error("a trace is left")
	}
}

func TestContainerBroken(t *testing.T) {
	whole, _ := testContainer(t, 1<<20, nil)
	frame := func(kind byte, payload string) []byte {
		return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(payload))), payload...)
	}
	begun := []byte(containerMagic)
	for n := range whole {
		if _, err := readAll(bytes.NewReader(whole[:n])); !errors.Is(err, errMalformed) {
			t.Fatalf("cut after %d bytes: %v", n, err)
		}
		flipped := bytes.Clone(whole)
		flipped[n] ^= 0x10
		if _, err := readAll(bytes.NewReader(flipped)); !errors.Is(err, errMalformed) {
			t.Fatalf("bit flipped in byte %d: %v", n, err)
		}
	}
	for name, bad := range map[string][]byte{
		"bytes after the end": append(bytes.Clone(whole), 'x'),
		"another version":     []byte("chainmail container 2\n"),
		"huge frame":          append(bytes.Clone(begun), '?', 0x7f, 0, 0, 0),
		"huge receipt":        append(bytes.Clone(begun), 'R', 0x7f, 0, 0, 0),
		"chunk without":       append(bytes.Clone(begun), frame('C', "x")...),
		"log that is no JSON": append(bytes.Clone(begun), frame('L', "{")...),
		"placements fall":     append(bytes.Clone(begun), frame('L', `{"store":"0000000000000007","placements":[{"from":5,"nodes":["a"]},{"from":5,"nodes":["b"]}]}`)...),
		"placed on nobody":    append(bytes.Clone(begun), frame('L', `{"store":"0000000000000007","placements":[{"from":5,"nodes":[]}]}`)...),
		"receipt 0":           append(bytes.Clone(begun), frame('R', strings.Repeat("\x00", 17)+string(testReceipt(record.Position{}, "")))...),
		"receipt too short":   append(bytes.Clone(begun), frame('R', "short")...),
		"receipt malformed":   append(bytes.Clone(begun), frame('R', strings.Repeat("\x01", 40))...),
	} {
		if _, err := readAll(bytes.NewReader(bad)); !errors.Is(err, errMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := readAll(io.MultiReader(bytes.NewReader(whole[:30]), iotest.ErrReader(errTest))); !errors.Is(err, errTest) || errors.Is(err, errMalformed) {
		t.Errorf("an error of the connection: %v", err)
	}
}

func TestContainerWriterBounds(t *testing.T) {
	w := newContainerWriter(1, func([]byte) error { return errTest })
	p := record.Position{Store: 7, Seq: 1}
	if err := w.receipt(p, make([]byte, maxReceiptFrame), false); err == nil {
		t.Error("a receipt beyond the bound is written")
	}
	if err := w.chunk(make([]byte, maxFrame+1)); err == nil || errors.Is(err, errTest) {
		t.Errorf("a chunk beyond the bound: %v", err)
	}
	if err := w.chunk([]byte("x")); !errors.Is(err, errTest) {
		t.Errorf("flush failed: %v", err)
	}
	long := record.Log{Store: 7}
	for i := range 100_000 {
		long.Placements = append(long.Placements, record.Placement{From: record.Seq(i + 1), Nodes: []string{"a", "b"}})
	}
	if err := w.log(long); err == nil {
		t.Error("a log beyond the bound is written")
	}
}

func FuzzContainer(f *testing.F) {
	whole, _ := testContainer(f, 1<<20, nil)
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add([]byte(containerMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := readAll(bytes.NewReader(b)); err != nil && !errors.Is(err, errMalformed) {
			t.Errorf("an error that says nothing of the container: %v", err)
		}
	})
}
