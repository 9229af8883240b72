package testcluster_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"chainmail/node"
	"chainmail/node/api"
	"chainmail/node/client"
	"chainmail/testcluster/load"
	"chainmail/testcluster/support"
)

func TestMain(m *testing.M) { os.Exit(support.Main(m)) }

// TestKill9LosesNothing kills the real program again and again while mail of
// several sizes comes in by DATA and BDAT, and finds every acknowledged mail.
// A kill leaves the page cache; power cuts are tried in package archive.
func TestKill9LosesNothing(t *testing.T) {
	const rounds = 5
	c := config(t)
	addr := support.FreeAddr(t)
	acked, err := os.Create(filepath.Join(t.TempDir(), "acked"))
	if err != nil {
		t.Fatal(err)
	}
	defer acked.Close()
	var (
		mu    sync.Mutex
		total int64
	)
	for round := range rounds {
		n := support.StartProgram(t, c.DataDir, addr)
		var once sync.Once
		var wg sync.WaitGroup
		for i, size := range []int{3000, 60_000, 600_000} {
			wg.Go(func() {
				r, err := load.Run(t.Context(), load.Options{
					Target: addr, Sessions: 6, Size: size, BDAT: i%2 == 0, Acked: acked, Patience: 1,
					Progress: func(p load.Progress) {
						if p.Acked > 20 {
							once.Do(func() { go n.Kill() })
						}
					},
				})
				if err == nil {
					t.Errorf("round %d: the load ended by itself: %v", round, r)
				}
				mu.Lock()
				total += r.Acked
				mu.Unlock()
			})
		}
		wg.Wait()
	}
	support.StartProgram(t, c.DataDir, addr)
	expectAcked(t, c.DataDir, acked.Name())
	t.Logf("%d kills, %d acknowledged mails", rounds, total)
}

// expectAcked reads every acknowledged mail back from a running node, and lets
// the node verify all it has.
func expectAcked(t *testing.T, dataDir, acked string) {
	t.Helper()
	list, err := os.Open(acked)
	if err != nil {
		t.Fatal(err)
	}
	defer list.Close()
	c := client.New(node.SocketPath(dataDir))
	defer c.Close()
	report, err := load.Check(t.Context(), list, load.Node(c), load.CheckOptions{})
	if err != nil || !report.OK() || report.Acked == 0 {
		t.Errorf("acknowledged mail: %v, %v", report, err)
	}
	last, err := c.Verify(t.Context(), func(api.VerifyEvent) {})
	if err != nil || last.Bad > 0 {
		t.Errorf("verify: %+v, %v", last, err)
	}
}
