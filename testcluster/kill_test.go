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

// programDir is where buildProgram puts the program; TestMain makes it.
var programDir string

// buildProgram builds the real program once for all tests.
var buildProgram = sync.OnceValues(func() (string, error) {
	file := filepath.Join(programDir, "chainmail")
	out, err := exec.Command("go", "build", "-o", file, "chainmail/cmd/chainmail").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return file, err
})

func TestMain(m *testing.M) {
	var err error
	if programDir, err = os.MkdirTemp("", "chainmail-bin"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(programDir)
	os.Exit(code)
}

// process is a node that runs the real program.
type process struct {
	cmd   *exec.Cmd
	log   bytes.Buffer // what it said; complete when ended is closed
	ready chan struct{}
	ended chan struct{}
}

// launch runs the real program as a node, with settings of the form KEY=VALUE
// for its environment, and does not wait for anything.
func launch(t *testing.T, dataDir, smtp string, settings ...string) *process {
	t.Helper()
	file, err := buildProgram()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{
		cmd:   exec.Command(file, "node", "--data-dir", dataDir, "--smtp", smtp, "--http", "127.0.0.1:0"),
		ready: make(chan struct{}),
		ended: make(chan struct{}),
	}
	p.cmd.Env = append(append(os.Environ(), "CHAINMAIL_DISK_MIN_FREE=1MiB"), settings...)
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			fmt.Fprintln(&p.log, lines.Text())
			if strings.HasPrefix(lines.Text(), "Stop the node") {
				close(p.ready)
			}
		}
		_ = p.cmd.Wait() // ProcessState tells
	}()
	t.Cleanup(p.kill)
	return p
}

// kill is kill -9, and waits. It does nothing to a node that has ended.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// program launches a node and waits until it is ready.
func program(t *testing.T, dataDir, smtp string, settings ...string) *process {
	t.Helper()
	p := launch(t, dataDir, smtp, settings...)
	select {
	case <-p.ready:
	case <-p.ended:
		t.Fatalf("the node ended at once:\n%s", p.log.String())
	}
	return p
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
		n := program(t, c.DataDir, addr)
		var once sync.Once
		var wg sync.WaitGroup
		for i, size := range []int{3000, 60_000, 600_000} {
			wg.Go(func() {
				r, err := load.Run(t.Context(), load.Options{
					Target: addr, Sessions: 6, Size: size, BDAT: i%2 == 0, Acked: acked, Patience: 1,
					Progress: func(p load.Progress) {
						if p.Acked > 20 {
							once.Do(func() { go n.kill() })
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
	program(t, c.DataDir, addr)
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
