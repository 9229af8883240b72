package machine

import (
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestProcessorTimeCountsDescendants(t *testing.T) {
	c := exec.Command("sh", "-c", "sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done'; exec sleep 60")
	if err := c.Start(); err != nil {
		t.Skip(err)
	}
	defer func() { _, _ = c.Process.Kill(), c.Wait() }()
	for begun := time.Now(); ; {
		used, err := CPU(c.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if used >= 2*tick {
			break
		}
		if time.Since(begun) > time.Minute {
			t.Fatalf("a child that counts to 200,000 has used %v", used)
		}
	}
	if _, err := Settle(t.Context(), c.Process.Pid); err != nil {
		t.Error(err)
	}
	if _, err := CPU(1 << 30); err == nil {
		t.Error("no error for a process that there is not")
	}
}

func TestOthersIsWhatIsLeft(t *testing.T) {
	from := Meter{At: time.Unix(0, 0)}
	to := Meter{At: time.Unix(1, 0), Servers: time.Second / 4, Own: time.Second / 4, Machine: time.Second}
	if got := Others(from, to); got <= 0 || got > 0.5 { // half a processor's second of all processors'
		t.Errorf("others had %v", got)
	}
	to.Machine = 0 // counted at another moment
	if got := Others(from, to); got != 0 {
		t.Errorf("others had %v", got)
	}
}

func TestFilesystemIsTheNearestMount(t *testing.T) {
	if kind, _ := filesystem("/proc/self"); !strings.HasPrefix(kind, "proc") {
		t.Errorf("/proc/self is on %s", kind)
	}
	if kind, device := filesystem("/"); kind == "unknown" || device == "unknown" {
		t.Errorf("/ is %s on %s", kind, device)
	}
}
