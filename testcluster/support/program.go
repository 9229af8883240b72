package support

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// programDir is where build puts the program; Main removes it.
var programDir string

// build builds the real program once for all tests of a package.
var build = sync.OnceValues(func() (string, error) {
	var err error
	if programDir, err = os.MkdirTemp("", "chainmail-bin"); err != nil {
		return "", err
	}
	file := filepath.Join(programDir, "chainmail")
	out, err := exec.Command("go", "build", "-o", file, "chainmail/cmd/chainmail").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return file, err
})

// Main runs the tests of a package that uses Program, and removes the program:
//
//	func TestMain(m *testing.M) { os.Exit(support.Main(m)) }
func Main(m *testing.M) int {
	defer func() { os.RemoveAll(programDir) }()
	return m.Run()
}

// Program is the file of the real program, built of the present source.
func Program(t testing.TB) string {
	t.Helper()
	file, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// Process is a node that runs the real program.
type Process struct {
	Cmd   *exec.Cmd
	Log   bytes.Buffer // what it said; complete when Ended is closed
	Ended chan struct{}
	ready chan struct{}
}

// Launch runs the real program as a node, with settings of the form KEY=VALUE
// for its environment, and does not wait for anything. It is killed at the end
// of the test.
func Launch(t testing.TB, dataDir, smtp string, settings ...string) *Process {
	t.Helper()
	args := []string{"node", "--name", "test", "--data-dir", dataDir, "--smtp", smtp}
	for _, service := range []string{"--chain", "--gossip", "--raft", "--http"} {
		args = append(args, service, "127.0.0.1:0")
	}
	p := &Process{Cmd: exec.Command(Program(t), args...), Ended: make(chan struct{}), ready: make(chan struct{})}
	p.Cmd.Env = append(append(os.Environ(), "CHAINMAIL_DISK_MIN_FREE=1MiB"), settings...)
	stderr, err := p.Cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.Ended)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			fmt.Fprintln(&p.Log, lines.Text())
			if strings.HasPrefix(lines.Text(), "Stop the node") {
				close(p.ready)
			}
		}
		_ = p.Cmd.Wait() // ProcessState tells
	}()
	t.Cleanup(p.Kill)
	return p
}

// Kill is kill -9, and waits. It does nothing to a node that has ended.
func (p *Process) Kill() {
	_ = p.Cmd.Process.Kill()
	<-p.Ended
}

// StartProgram launches a node and waits until it is ready.
func StartProgram(t testing.TB, dataDir, smtp string, settings ...string) *Process {
	t.Helper()
	p := Launch(t, dataDir, smtp, settings...)
	select {
	case <-p.ready:
	case <-p.Ended:
		t.Fatalf("the node ended at once:\n%s", p.Log.String())
	}
	return p
}
