package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"chainmail/testcluster/load"
	"chainmail/testcluster/machine"
)

// subdir makes a directory for one section.
func (b *bench) subdir(name string) (dir string, remove func(), err error) {
	if dir, err = os.MkdirTemp(b.dir, name+"-"); err != nil {
		return "", nil, err
	}
	return dir, func() { os.RemoveAll(dir) }, os.Chmod(dir, 0o755)
}

// withNode runs a section on a fresh node. Without the program it says so.
func (b *bench) withNode(ctx context.Context, title string, section func(dir string, n *node) error) error {
	b.printf("## %s\n\n", title)
	dir, remove, err := b.subdir("node")
	if err != nil {
		return err
	}
	defer remove()
	n, err := b.startNode(ctx, dir)
	if errors.Is(err, errAbsent) {
		b.printf("%v\n\n", err)
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(section(dir, n), n.stop())
}

// The two ways to send a mail's text.
const (
	data = "DATA"
	bdat = "BDAT"
)

var verbs = []string{data, bdat}

// latency measures one session beside what the disk needs for one sync.
func (b *bench) latency(ctx context.Context) error {
	return b.withNode(ctx, "One session", func(dir string, n *node) error {
		got := map[string][]time.Duration{}
		var names []string
		add := func(name string, d time.Duration, err error) error {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
			got[name] = append(got[name], d)
			return err
		}
		for range b.rounds {
			d, err := syncTime(dir, false)
			if err := add("bare fdatasync after appending 4 KiB", d, err); err != nil {
				return err
			}
			d, err = syncTime(dir, true)
			if err := add("bare fdatasync after overwriting 4 KiB in place", d, err); err != nil {
				return err
			}
			for _, size := range []int{4 << 10, 50 << 10} {
				for _, verb := range verbs {
					r, err := load.Run(ctx, load.Options{Target: n.addr, Size: size, Duration: b.time, BDAT: verb == bdat})
					d := time.Duration(r.Latency.P50 * float64(time.Millisecond))
					if err := add("chainmail, "+sizeName(size)+" by "+verb, d, err); err != nil {
						return err
					}
				}
			}
			progress("one session: %v", got)
		}
		var rows [][]string
		for _, name := range slices.Sorted(slices.Values(names)) {
			rows = append(rows, []string{name, millis(median(got[name]))})
		}
		b.table([]string{"", "p50"}, rows)
		return nil
	})
}

// syncTime is the median time of a write of 4 KiB and its fdatasync, in a file
// that grows or in one of fixed size.
func syncTime(dir string, inPlace bool) (time.Duration, error) {
	f, err := os.CreateTemp(dir, "sync-")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	const writes = 500
	block := make([]byte, 4<<10)
	if inPlace {
		if _, err := f.Write(make([]byte, writes*len(block))); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
	}
	var took []time.Duration
	for i := range int64(writes) {
		begun := time.Now()
		if _, err := f.WriteAt(block, i*int64(len(block))); err != nil {
			return 0, err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return 0, err
		}
		took = append(took, time.Since(begun))
	}
	return median(took), nil
}

// memory measures the resident set of an idle node and its peak under many
// large mails at once.
func (b *bench) memory(ctx context.Context) error {
	return b.withNode(ctx, "Memory", func(_ string, n *node) error {
		if _, err := machine.Settle(ctx, n.server.pid); err != nil {
			return err
		}
		var rows [][]string
		row := func(what, field string) error {
			kib, err := procField(n.server.pid, "status", field)
			rows = append(rows, []string{what, mib(kib << 10)})
			return err
		}
		if err := row("idle, empty archive", "VmRSS"); err != nil {
			return err
		}
		count := int64(192)
		if b.quick {
			count = 64
		}
		for _, verb := range verbs {
			if err := forgetPeak(n.server.pid); err != nil {
				return err
			}
			report, err := load.Run(ctx, load.Options{Target: n.addr, Sessions: 64, Size: 25 << 20, Count: count, BDAT: verb == bdat, Attempts: 100, Timeout: 10 * time.Minute})
			if err != nil {
				return err
			}
			progress("memory, 64 × 25 MiB by %s:\n%s", verb, report)
			if report.Acked != count {
				return fmt.Errorf("not all mail was taken:\n%s", report)
			}
			if err := row("peak, 64 sessions × 25 MiB by "+verb, "VmHWM"); err != nil {
				return err
			}
		}
		if _, err := machine.Settle(ctx, n.server.pid); err != nil {
			return err
		}
		if err := row("idle afterwards", "VmRSS"); err != nil {
			return err
		}
		b.table([]string{"", "resident"}, rows)
		return nil
	})
}

// disk measures what 2 GB of mail take on disk and how much is written for it.
func (b *bench) disk(ctx context.Context) error {
	total := int64(2_000_000_000)
	if b.quick {
		total /= 4
	}
	return b.withNode(ctx, "Disk", func(dir string, n *node) error {
		before, err := procField(n.server.pid, "io", "write_bytes")
		if err != nil {
			return err
		}
		const size = 50 << 10
		report, err := load.Run(ctx, load.Options{Target: n.addr, Sessions: 32, Size: size, Count: total / size})
		if err != nil {
			return err
		}
		if _, err := machine.Settle(ctx, n.server.pid); err != nil {
			return err
		}
		after, err := procField(n.server.pid, "io", "write_bytes")
		if err != nil {
			return err
		}
		used, err := machine.DiskUsage(dir)
		if err != nil {
			return err
		}
		perByte := func(n int64) string { return fmt.Sprintf("%.2f", float64(n)/float64(report.Bytes)) }
		b.table([]string{fmt.Sprintf("%d mails of 50 KiB in", report.Acked), "", "per byte of mail"}, [][]string{
			{"mail", mib(report.Bytes), "1"},
			{"used on disk", mib(used), perByte(used)},
			{"written to the device", mib(after - before), perByte(after - before)},
			{"rate", fmt.Sprintf("%.0f mails/s", report.MailsPerSecond), ""},
		})
		return nil
	})
}
