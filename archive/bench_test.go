package archive_test

import (
	"encoding/binary"
	"fmt"
	"testing"

	"chainmail/archive"
	"chainmail/archive/record"
)

// BenchmarkCommit archives text-like mail from 32 senders, each mail synced
// before the next of the same sender.
func BenchmarkCommit(b *testing.B) {
	for _, size := range []int{4 << 10, 50 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			a, err := archive.Open(archive.Options{Dir: b.TempDir(), MinFree: 1})
			if err != nil {
				b.Fatal(err)
			}
			defer a.Close()
			text := message(1, size)
			b.SetBytes(int64(size))
			b.SetParallelism(16)
			b.RunParallel(func(pb *testing.PB) {
				msg := append([]byte(nil), text...)
				for n := uint64(0); pb.Next(); n++ {
					binary.BigEndian.PutUint64(msg, n)
					copy(msg[8:], fmt.Sprintf("%p", msg))
					d := a.NewDraft(b.Context())
					if _, err := d.Write(msg); err != nil {
						b.Error(err)
					}
					if _, err := d.Commit(record.Envelope{From: "a@example.com", To: []string{"b@example.com"}, Client: "192.0.2.1:1", Helo: "x", Connector: "smtp"}); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
