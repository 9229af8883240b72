package archive

import (
	"bytes"
	"errors"
	"testing"
)

func TestChunkKeepsWhatDoesNotCompress(t *testing.T) {
	z := newCompressor()
	for name, tt := range map[string]struct {
		raw   []byte
		codec byte
	}{
		"text":     {bytes.Repeat([]byte("kept for years\r\n"), 1000), codecZstd},
		"one byte": {[]byte{7}, codecStored},
		"whole":    {make([]byte, chunkSize), codecZstd},
	} {
		packed := z.appendChunk([]byte("before"), tt.raw)
		if packed[6] != tt.codec {
			t.Errorf("%s: codec %d, want %d", name, packed[6], tt.codec)
		}
		got, err := z.decodeChunk(nil, packed[6:])
		if err != nil || !bytes.Equal(got, tt.raw) {
			t.Errorf("%s: decoded %d bytes, %v", name, len(got), err)
		}
	}
}

// FuzzDecodeChunk: damaged chunks are errors, never panics, never more memory
// than a chunk, and never other bytes than were stored.
func FuzzDecodeChunk(f *testing.F) {
	z := newCompressor()
	f.Add(z.appendChunk(nil, bytes.Repeat([]byte("mail "), 100)), 20, byte(1))
	f.Add(z.appendChunk(nil, []byte{1, 2, 3}), 6, byte(1))
	f.Add([]byte{}, 0, byte(0))
	f.Fuzz(func(t *testing.T, b []byte, at int, flip byte) {
		raw, err := z.decodeChunk(nil, b)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("error %v is no ErrCorrupt", err)
		}
		if len(raw) > chunkSize {
			t.Fatalf("%d bytes out of a chunk", len(raw))
		}
		if len(b) == 0 || len(b) > chunkSize {
			return
		}
		packed := z.appendChunk(nil, b)
		if got, err := z.decodeChunk(raw, packed); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("round trip: %d of %d bytes, %v", len(got), len(b), err)
		}
		if at = at % len(packed); at > 0 && flip != 0 {
			packed[at] ^= flip
			if got, err := z.decodeChunk(raw, packed); err == nil && !bytes.Equal(got, b) {
				t.Fatalf("a flipped byte at %d went through", at)
			}
		}
	})
}
