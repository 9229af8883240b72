package membership_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"chainmail/membership"
)

// killedCreate names the directory in which the process that is to be killed
// makes clusters.
const killedCreate = "CHAINMAIL_TEST_CREATE"

// TestCreateKilled really kills a process at points all over Create, and then
// calls it again.
func TestCreateKilled(t *testing.T) {
	if dir := os.Getenv(killedCreate); dir != "" {
		if _, err := os.Stdout.WriteString("ready"); err != nil {
			t.Fatal(err)
		}
		for i := 0; ; i++ { // until killed
			if err := membership.Create(filepath.Join(dir, strconv.Itoa(i), "cluster"), membership.CreateOptions{Name: "a"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range 20 {
		dir := t.TempDir()
		cmd := exec.Command(os.Args[0], "-test.run=^TestCreateKilled$")
		cmd.Env = append(os.Environ(), killedCreate+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * 1700 * time.Microsecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		made, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range made { // the last one is what the kill left
			checkCreated(t, filepath.Join(dir, entry.Name(), "cluster"))
		}
	}
}

// checkCreated calls Create again, and opens what is there then.
func checkCreated(t *testing.T, dir string) {
	t.Helper()
	if err := membership.Create(dir, membership.CreateOptions{Name: "a"}); err != nil {
		t.Fatalf("%s: %v", dir, err)
	}
	m, err := membership.Open(membership.Options{Dir: dir, Bind: membership.Bind{Gossip: "127.0.0.1:0", Raft: "127.0.0.1:0"}})
	if err != nil {
		t.Fatalf("%s: %v", dir, err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}
