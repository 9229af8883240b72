//go:build !cgo

package archive

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// compressor makes and reads Zstandard frames without C; see zstd_cgo.go. A
// compressor serves one goroutine at a time.
type compressor struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

func newCompressor() *compressor {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		panic(fmt.Sprintf("zstd: %v", err))
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(chunkSize))
	if err != nil {
		panic(fmt.Sprintf("zstd: %v", err))
	}
	return &compressor{enc, dec}
}

// append appends raw, compressed, to dst.
func (z *compressor) append(dst, raw []byte) []byte { return z.enc.EncodeAll(raw, dst) }

// expand decompresses one frame of size raw bytes into dst's memory.
func (z *compressor) expand(dst, frame []byte, size int) ([]byte, error) {
	if cap(dst) < size {
		dst = make([]byte, 0, size)
	}
	return z.dec.DecodeAll(frame, dst[:0])
}
