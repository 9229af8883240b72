// Package machine says what processes take of this machine (Linux, by proc(5))
// and what machine it is: for peerbench and clusterbench.
package machine

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

// CPU is what processes and all their descendants, living and dead, have used.
func CPU(roots ...int) (time.Duration, error) {
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
	var total time.Duration
	for _, root := range roots {
		s, err := readStat(strconv.Itoa(root))
		if err != nil {
			return 0, err
		}
		total += sum(s)
	}
	return total, nil
}

// ownCPU is the processor time of this process alone.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Meter is the processor time used so far by servers, by this process, and by
// the whole machine.
type Meter struct {
	At                    time.Time
	Servers, Own, Machine time.Duration
}

// ReadMeter reads it; pids are the servers.
func ReadMeter(pids ...int) (m Meter, err error) {
	if m.Servers, err = CPU(pids...); err != nil {
		return m, err
	}
	m.At, m.Own = time.Now(), ownCPU()
	m.Machine, err = machineCPU()
	return m, err
}

// Others is the share of the machine, between 0 and 1, that neither the servers
// nor this process had: other programs, the kernel's own threads, and what the
// host of a virtual machine took away.
func Others(from, to Meter) float64 {
	busy := (to.Machine - from.Machine) - (to.Servers - from.Servers) - (to.Own - from.Own)
	all := to.At.Sub(from.At) * time.Duration(runtime.NumCPU())
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

// Settle waits until servers are idle, and returns their processor time: what
// they do after the last answer (compaction, delivery) is then counted as
// theirs and does not disturb the next ones. It gives up after a minute.
func Settle(ctx context.Context, pids ...int) (time.Duration, error) {
	const window = 250 * time.Millisecond
	last, err := CPU(pids...)
	for end := time.Now().Add(time.Minute); err == nil && time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(window):
		}
		now, err := CPU(pids...)
		if err != nil || now-last <= window/20*time.Duration(len(pids)) {
			return now, err
		}
		last = now
	}
	return last, err
}
