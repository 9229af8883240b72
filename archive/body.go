package archive

import (
	"encoding/binary"
	"hash/crc32"

	"chainmail/archive/record"
)

// A message's bytes are kept in chunks of chunkSize raw bytes, the last one
// shorter; an empty message has none. Each chunk stands for itself:
//
//	+-------+-------------------+------------+----------------------+
//	| codec | CRC-32C of what   | raw length | stored bytes         |
//	| 1     | follows, 4, big e.| uvarint    |                      |
//	+-------+-------------------+------------+----------------------+
//
// codec 0: stored as they are; codec 1: one Zstandard frame (RFC 8878). The
// checksum finds a damaged chunk before it is decompressed and long before
// the SHA-256 of the whole message would. 128 KiB is where Zstandard level 1
// is fastest: larger inputs get larger tables, which miss the caches.
const (
	chunkSize = 128 << 10

	codecStored = 0
	codecZstd   = 1

	chunkHeader    = 5
	maxChunkHeader = chunkHeader + binary.MaxVarintLen32
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendChunk appends the stored form of raw, which is 1 to chunkSize bytes.
func (z *compressor) appendChunk(dst, raw []byte) []byte {
	start := len(dst)
	dst = append(dst, codecZstd, 0, 0, 0, 0)
	dst = binary.AppendUvarint(dst, uint64(len(raw)))
	payload := len(dst)
	dst = z.append(dst, raw)
	if len(dst)-payload >= len(raw) {
		dst = append(dst[:payload], raw...)
		dst[start] = codecStored
	}
	sum := crc32.Checksum(dst[start+chunkHeader:], castagnoli)
	binary.BigEndian.PutUint32(dst[start+1:], sum)
	return dst
}

// checkChunk compares the checksum of a stored chunk; the error is an
// ErrCorrupt.
func checkChunk(chunk []byte) error {
	if len(chunk) < chunkHeader {
		return corrupt("chunk of %d bytes has no header", len(chunk))
	}
	sum, want := crc32.Checksum(chunk[chunkHeader:], castagnoli), binary.BigEndian.Uint32(chunk[1:])
	if sum != want {
		return corrupt("chunk checksum is %08x, want %08x", sum, want)
	}
	return nil
}

// rawLength is the length of a chunk's raw bytes, of a chunk whose checksum is
// right.
func rawLength(chunk []byte) uint64 {
	n, _ := binary.Uvarint(chunk[chunkHeader:])
	return n
}

// decodeChunk gives the raw bytes of a stored chunk, in dst's memory where
// they fit. Every error is an ErrCorrupt.
func (z *compressor) decodeChunk(dst, chunk []byte) ([]byte, error) {
	if err := checkChunk(chunk); err != nil {
		return nil, err
	}
	rest := chunk[chunkHeader:]
	size, n := binary.Uvarint(rest)
	if n <= 0 || size == 0 || size > chunkSize {
		return nil, corrupt("chunk length %d is not in 1 … %d", size, chunkSize)
	}
	payload := rest[n:]
	switch chunk[0] {
	case codecStored:
		dst = append(dst[:0], payload...)
	case codecZstd:
		var err error
		if dst, err = z.expand(dst, payload, int(size)); err != nil {
			return nil, corrupt("chunk does not decompress: %v", err)
		}
	default:
		return nil, corrupt("chunk codec %d is unknown", chunk[0])
	}
	if uint64(len(dst)) != size {
		return nil, corrupt("chunk has %d bytes, want %d", len(dst), size)
	}
	return dst, nil
}

// bodyRange is the span of keys that hold one body.
func bodyRange(s record.StoreID, b record.BodyNo) (start, end []byte) {
	start = u64(kindBody, uint64(s), uint64(b))
	return start, after(start)
}
