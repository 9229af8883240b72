package chain_test

import (
	"fmt"
	"testing"
	"time"

	"chainmail/archive/record"
)

// BenchmarkCatchUp is what the link itself costs: archives in memory, TLS, no
// disk. One operation is one mail of 50 KiB.
func BenchmarkCatchUp(b *testing.B) {
	for _, size := range []int{4 << 10, 50 << 10} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			c := newCluster(b, "a b", policies(1, 2))
			c.nodes["a"].archive.syncTime, c.nodes["b"].archive.syncTime = 0, 0
			c.nodes["b"].archive.work = 1 // about what decompression and the database cost
			c.nodes["a"].fill(b.N, size)
			c.start("a")
			b.SetBytes(int64(size))
			b.ResetTimer()
			c.start("b")
			for len(record.Of(1, record.Seq(b.N)).Minus(c.nodes["b"].archive.held(storeOf(1)))) > 0 {
				time.Sleep(time.Millisecond)
			}
			b.StopTimer()
			c.stopAll()
		})
	}
}

// BenchmarkCopies is a 250 with two copies on an idle link.
func BenchmarkCopies(b *testing.B) {
	for _, sessions := range []int{1, 32} {
		b.Run(fmt.Sprintf("%dsessions", sessions), func(b *testing.B) {
			c := newCluster(b, "a b", policies(2, 2))
			c.start("a")
			c.start("b")
			a := c.nodes["a"]
			a.archive.syncTime, c.nodes["b"].archive.syncTime = 0, 0
			for !a.peer("b").Link.Live {
				time.Sleep(time.Millisecond)
			}
			b.SetParallelism(sessions)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					if _, copies, _ := a.accept("a mail"); copies != 2 {
						b.Error("short")
					}
				}
			})
			b.StopTimer()
			c.stopAll()
		})
	}
}
