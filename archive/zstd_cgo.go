//go:build cgo

package archive

import (
	"fmt"

	"github.com/DataDog/zstd"
)

// compressor makes and reads Zstandard frames with the C library: twice as
// fast as the Go one on mail at the same ratio, and the largest single cost of
// archiving a message. Without cgo, zstd_go.go writes frames of the same
// format. A compressor serves one goroutine at a time.
type compressor struct{ ctx zstd.Ctx }

func newCompressor() *compressor { return &compressor{zstd.NewCtx()} }

// append appends raw, compressed, to dst.
func (z *compressor) append(dst, raw []byte) []byte {
	bound := zstd.CompressBound(len(raw))
	if cap(dst)-len(dst) < bound {
		dst = append(make([]byte, 0, len(dst)+bound), dst...)
	}
	out, err := z.ctx.CompressLevel(dst[len(dst):cap(dst)], raw, zstd.BestSpeed)
	if err != nil { // the bound was honoured: only a broken library fails
		panic(fmt.Sprintf("zstd: compress %d bytes: %v", len(raw), err))
	}
	return dst[:len(dst)+len(out)]
}

// expand decompresses one frame of size raw bytes into dst's memory.
func (z *compressor) expand(dst, frame []byte, size int) ([]byte, error) {
	if len(frame) == 0 {
		return nil, zstd.ErrEmptySlice
	}
	if cap(dst) < size {
		dst = make([]byte, size)
	}
	n, err := z.ctx.DecompressInto(dst[:size], frame)
	return dst[:max(n, 0)], err
}
