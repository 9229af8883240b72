package testcluster_test

import (
	"fmt"
	"testing"

	"chainmail/testcluster/load"
	"chainmail/testcluster/support"
)

// BenchmarkNode sends mail to a node in this process from 32 sessions; with
// -cpuprofile it shows where a mail's time goes. For rates beside other servers
// see peerbench.
func BenchmarkNode(b *testing.B) {
	for _, size := range []int{4 << 10, 50 << 10, 1 << 20} {
		for _, bdat := range []bool{false, true} {
			name := map[bool]string{false: "DATA", true: "BDAT"}[bdat]
			b.Run(fmt.Sprintf("%s/%dKiB", name, size>>10), func(b *testing.B) {
				n := support.Start(b, config(b))
				b.SetBytes(int64(size))
				b.ResetTimer()
				r, err := load.Run(b.Context(), load.Options{
					Target: n.Addrs()["smtp"], Sessions: 32, Size: size, BDAT: bdat, Count: int64(b.N),
				})
				if err != nil || r.Acked != int64(b.N) {
					b.Fatalf("%v, %v", r, err)
				}
			})
		}
	}
}
