package load

import (
	"bytes"
	"fmt"
	"net"
	netmail "net/mail"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func TestMessageHasItsSizeAndParses(t *testing.T) {
	for _, size := range []int{1, 420, 500, 501, 502, 503, 4 << 10, 50 << 10, 1 << 20, 25 << 20} {
		m := Message(7, 3, size)
		if len(m) != size && size > 500 {
			t.Errorf("message of %d bytes has %d", size, len(m))
		}
		parsed, err := netmail.ReadMessage(bytes.NewReader(m))
		if err != nil {
			t.Fatalf("size %d: %v", size, err)
		}
		if got := parsed.Header.Get("Message-ID"); got != "<7.3@load.example>" {
			t.Errorf("Message-ID %q", got)
		}
		if _, err := parsed.Header.Date(); err != nil {
			t.Errorf("Date: %v", err)
		}
	}
}

// A seed and a number name the same bytes for ever: lists of acknowledged
// hashes outlive the program that wrote them.
func TestMessageIsDeterministicAndUnique(t *testing.T) {
	seen := map[string]string{}
	for seed := range uint64(5) {
		for n := range int64(50) {
			m, name := string(Message(seed, n, 2000)), fmt.Sprint(seed, "/", n)
			if m != string(Message(seed, n, 2000)) {
				t.Fatalf("message %s differs from itself", name)
			}
			if other := seen[m]; other != "" {
				t.Fatalf("messages %s and %s are the same", name, other)
			}
			seen[m] = name
		}
	}
}

func TestTextCompressesLikeMail(t *testing.T) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	var in, out int
	for n := range int64(50) {
		m := Message(1, n, 50<<10)
		in += len(m)
		out += len(enc.EncodeAll(m, nil))
	}
	if ratio := float64(in) / float64(out); ratio < 2.0 || ratio > 2.5 {
		t.Errorf("50 KiB compress %.2f times, want about 2.2", ratio)
	} else {
		t.Logf("50 KiB compress %.2f times", ratio)
	}
}

// The stuffed form of any message, read by the rule of RFC 5321 section 4.5.2,
// is the plain form, wherever in the text it begins and however often it goes
// round.
func TestStuffedFormIsThePlainOne(t *testing.T) {
	p := text()
	for _, line := range []int{0, 1, p.lines() / 2, p.lines() - 1} {
		for _, room := range []int{0, 1, 77, 5000, textSize - 1, textSize * 2} {
			n := p.fit(line, room)
			if n > room || n < room-2*78 {
				t.Fatalf("fit(%d, %d) = %d", line, room, n)
			}
			raw := slices.Concat(p.append(net.Buffers{}, line, n, plain)...)
			wire := slices.Concat(p.append(net.Buffers{}, line, n, stuffed)...)
			if len(raw) != n {
				t.Fatalf("from line %d: %d bytes, want %d", line, len(raw), n)
			}
			if got := unstuff(wire); !bytes.Equal(got, raw) {
				t.Fatalf("from line %d, %d bytes: stuffed text reads differently", line, n)
			}
		}
	}
}

func unstuff(wire []byte) []byte {
	var out []byte
	for line := range bytes.SplitAfterSeq(wire, []byte("\r\n")) {
		out = append(out, bytes.TrimPrefix(line, []byte("."))...)
	}
	return out
}
