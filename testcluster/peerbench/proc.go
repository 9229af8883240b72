package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// tick is the unit of processor time in /proc/PID/stat: USER_HZ is 100 on every
// platform that Go runs on.
const tick = 10 * time.Millisecond

type procStat struct {
	pid, parent int
	cpu         time.Duration // user and system, with that of children that ended
}

// readStat reads /proc/PID/stat (proc(5)). The name of the program, in brackets,
// may hold anything, so fields are counted from its end.
func readStat(pid string) (procStat, error) {
	b, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if err != nil {
		return procStat{}, err
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 15 {
		return procStat{}, fmt.Errorf("/proc/%s/stat has %d fields", pid, len(f))
	}
	s := procStat{}
	s.pid, _ = strconv.Atoi(pid)
	s.parent, _ = strconv.Atoi(f[1])
	for _, ticks := range f[11:15] { // utime, stime, cutime, cstime
		n, _ := strconv.ParseInt(ticks, 10, 64)
		s.cpu += time.Duration(n) * tick
	}
	return s, nil
}

// cpuTime is what a process and all its descendants, living and dead, have used.
func cpuTime(root int) (time.Duration, error) {
	own, err := readStat(strconv.Itoa(root))
	if err != nil {
		return 0, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	children := map[int][]procStat{}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		if s, err := readStat(e.Name()); err == nil { // it may have ended meanwhile
			children[s.parent] = append(children[s.parent], s)
		}
	}
	var sum func(s procStat) time.Duration
	sum = func(s procStat) time.Duration {
		total := s.cpu
		for _, c := range children[s.pid] {
			total += sum(c)
		}
		return total
	}
	return sum(own), nil
}

// ownCPU is the processor time of this process alone.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// meter is the processor time used so far by a server, by this process, and by
// the whole machine.
type meter struct {
	at                   time.Time
	server, own, machine time.Duration
}

func readMeter(pid int) (m meter, err error) {
	if m.server, err = cpuTime(pid); err != nil {
		return m, err
	}
	m.at, m.own = time.Now(), ownCPU()
	m.machine, err = machineCPU()
	return m, err
}

// others is the share of the machine, between 0 and 1, that neither the server
// nor this process had: other programs, the kernel's own threads, and what the
// host of a virtual machine took away.
func others(from, to meter) float64 {
	busy := (to.machine - from.machine) - (to.server - from.server) - (to.own - from.own)
	all := to.at.Sub(from.at) * time.Duration(runtime.NumCPU())
	return max(0, float64(busy)/float64(all))
}

// machineCPU is the time that all processors were not idle (proc(5), stat).
func machineCPU() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	var busy time.Duration
	for i, ticks := range f[1:9] {
		const idle, iowait = 3, 4
		if n, err := strconv.ParseInt(ticks, 10, 64); err == nil && i != idle && i != iowait {
			busy += time.Duration(n) * tick
		}
	}
	return busy, nil
}

// settle waits until a server is idle: what it does after its last answer
// (compaction, delivery) is then counted as its own and does not disturb the
// next one. It gives up after a minute.
func settle(ctx context.Context, pid int) (time.Duration, error) {
	const window = 250 * time.Millisecond
	last, err := cpuTime(pid)
	for end := time.Now().Add(time.Minute); err == nil && time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(window):
		}
		now, err := cpuTime(pid)
		if err != nil || now-last <= window/20 {
			return now, err
		}
		last = now
	}
	return last, err
}

// procField reads "name: number" from a file of /proc/PID, such as VmHWM in
// status (KiB) or write_bytes in io (bytes).
func procField(pid int, file, name string) (int64, error) {
	path := filepath.Join("/proc", strconv.Itoa(pid), file)
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			return strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, name)
}

// forgetPeak makes VmHWM of a process begin again at its present size (proc(5),
// clear_refs).
func forgetPeak(pid int) error {
	return os.WriteFile(filepath.Join("/proc", strconv.Itoa(pid), "clear_refs"), []byte("5"), 0)
}
