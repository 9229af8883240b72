package testcluster_test

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"chainmail/node"
	"chainmail/node/api"
	"chainmail/node/client"
	"chainmail/testcluster/load"
)

// buildProgram builds the real program once for all tests.
var buildProgram = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "chainmail-bin")
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "chainmail")
	out, err := exec.Command("go", "build", "-o", file, "chainmail/cmd/chainmail").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return file, err
})

func TestMain(m *testing.M) {
	code := m.Run()
	if file, err := buildProgram(); err == nil {
		os.RemoveAll(filepath.Dir(file))
	}
	os.Exit(code)
}

// program runs the real program as a node and waits until it is ready. kill is
// kill -9, and waits.
func program(t *testing.T, dataDir, smtp string) (kill func()) {
	t.Helper()
	file, err := buildProgram()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(file, "node", "--data-dir", dataDir, "--smtp", smtp, "--http", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), "CHAINMAIL_DISK_MIN_FREE=1MiB")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready, ended := make(chan struct{}), make(chan struct{})
	var log bytes.Buffer
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			fmt.Fprintln(&log, lines.Text())
			if strings.HasPrefix(lines.Text(), "Stop the node") {
				close(ready)
			}
		}
	}()
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill() // it may have ended, and the test says so elsewhere
		<-ended
		_ = cmd.Wait()
	})
	t.Cleanup(kill)
	select {
	case <-ready:
	case <-ended:
		t.Fatalf("the node ended at once:\n%s", log.String())
	}
	return kill
}

// TestKill9LosesNothing kills the real program again and again while mail of
// several sizes comes in by DATA and BDAT, and finds every acknowledged mail.
// A kill leaves the page cache; power cuts are tried in package archive.
func TestKill9LosesNothing(t *testing.T) {
	const rounds = 5
	c := config(t)
	addr := freeAddr(t)
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
		kill := program(t, c.DataDir, addr)
		var once sync.Once
		var wg sync.WaitGroup
		for i, size := range []int{3000, 60_000, 600_000} {
			wg.Go(func() {
				r, err := load.Run(t.Context(), load.Options{
					Target: addr, Sessions: 6, Size: size, BDAT: i%2 == 0, Acked: acked, Patience: 1,
					Progress: func(p load.Progress) {
						if p.Acked > 20 {
							once.Do(func() { go kill() })
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
	kill := program(t, c.DataDir, addr)
	defer kill()
	list, err := os.Open(acked.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer list.Close()
	client := client.New(node.SocketPath(c.DataDir))
	defer client.Close()
	report, err := load.Check(t.Context(), list, load.Node(client), load.CheckOptions{})
	if err != nil || !report.OK() || total == 0 {
		t.Errorf("%d acknowledged: %v, %v", total, report, err)
	}
	last, err := client.Verify(t.Context(), func(api.VerifyEvent) {})
	if err != nil || last.Bad > 0 {
		t.Errorf("verify: %+v, %v", last, err)
	}
	t.Logf("%d kills, %d acknowledged mails", rounds, total)
}

// freeAddr is an address of loopback that nobody listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
