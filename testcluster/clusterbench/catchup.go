package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"chainmail/testcluster/load"
	"chainmail/testcluster/machine"
)

// replay is one round of a node that was away and is given what came meanwhile.
type replay struct {
	mails    int64
	raw      int64         // bytes of the mails
	stored   int64         // bytes of the containers in which they were sent, as they are stored
	ingest   time.Duration // in which the two other nodes took them
	up       time.Duration // from the start of the node to the first receipt it is given
	whole    time.Duration // from its start until it holds all
	receiver time.Duration // processor time of the node that is given them
	senders  time.Duration // of the others meanwhile
	copied   int64         // bytes of the archive that was copied
	copying  time.Duration // with cp and sync
}

// catchUp measures how fast a node is given what it missed, beside the speed at
// which mail comes in and that of a plain copy.
func (b *bench) catchUp(ctx context.Context) error {
	t := b.results.table(fmt.Sprintf("Catch-up: a node that missed %d mails of 50 KiB", b.mails),
		"Three nodes; one is killed, the two others take the mails (32 sessions), then it is started again. The copy is cp and sync of another node's archive, read from the disk as the replay is.")
	for range b.rounds {
		r := replay{}
		if err := b.with(ctx, 3, func(c *cluster) error { return c.replay(ctx, b.mails, &r) }); err != nil {
			return err
		}
		progress("catch-up: ingest %.2f s, replay %.2f s from start, %.2f s from the first receipt, copy %.2f s", r.ingest.Seconds(), r.whole.Seconds(), (r.whole - r.up).Seconds(), r.copying.Seconds())
		r.enter(t)
	}
	return nil
}

// enter puts a round into the table.
func (r *replay) enter(t *table) {
	const name = "catch-up"
	per := func(n int64, d time.Duration) float64 { return float64(n) / d.Seconds() }
	replaying := r.whole - r.up
	t.add(name, "s, from its start until it holds all", r.whole.Seconds())
	t.add(name, "s, from its start to its first receipt", r.up.Seconds())
	t.add(name, "receipts/s from its first receipt on", per(r.mails, replaying))
	t.add(name, "MB/s of mail", per(r.raw, replaying)/1e6)
	t.add(name, "MB/s as stored", per(r.stored, replaying)/1e6)
	t.add(name, "receipts/s from its start on", per(r.mails, r.whole))
	t.add(name, "mails/s that the two others took", per(r.mails, r.ingest))
	t.add(name, "MB/s of cp and sync, as stored", per(r.copied, r.copying)/1e6)
	t.add(name, "times the ingest (aim: 3)", r.ingest.Seconds()/replaying.Seconds())
	t.add(name, "times the ingest, from its start on", r.ingest.Seconds()/r.whole.Seconds())
	t.add(name, "times the copy (aim: 0.5)", per(r.stored, replaying)/per(r.copied, r.copying))
	t.add(name, "µs of processor a mail, receiver", micros(r.receiver)/float64(r.mails))
	t.add(name, "µs of processor a mail, senders", micros(r.senders)/float64(r.mails))
}

// replay measures a round. It ends the nodes.
func (c *cluster) replay(ctx context.Context, mails int64, r *replay) error {
	const away = "c"
	if err := c.Kill(away); err != nil {
		return err
	}
	if err := c.ingest(ctx, mails, r); err != nil {
		return err
	}
	before, err := c.cpu()
	if err != nil {
		return err
	}
	if err := c.catchUp(ctx, away, r); err != nil {
		return err
	}
	after, err := c.healed(ctx)
	if err != nil {
		return err
	}
	for name, used := range after {
		if name == away {
			r.receiver = used
		} else {
			r.senders += used - before[name]
		}
	}
	if err := c.StopAll(); err != nil {
		return err
	}
	r.copied, r.copying, err = copyDir(ctx, c.archive("a"), filepath.Join(c.dir, "copy"))
	return err
}

// ingest lets the two nodes that are left take the mails.
func (c *cluster) ingest(ctx context.Context, mails int64, r *replay) error {
	syscall.Sync()
	begun := time.Now()
	report, err := c.send(ctx, load.Options{Sessions: 32, Size: 50 << 10, Count: mails})
	if err != nil {
		return err
	}
	if _, err := c.holdAll(ctx, "b"); err != nil {
		return err
	}
	r.ingest, r.mails, r.raw = time.Since(begun), report.Acked, report.Bytes
	_, err = machine.Settle(ctx, c.pids("a", "b")...)
	return err
}

// catchUp starts a node and waits until it holds all.
func (c *cluster) catchUp(ctx context.Context, name string, r *replay) error {
	want, err := c.receipts(ctx, "a")
	if err != nil {
		return err
	}
	before, err := c.sentTo(ctx, name)
	if err != nil {
		return err
	}
	syscall.Sync()
	begun := time.Now()
	started := make(chan error, 1)
	go func() { started <- c.Start(ctx, name) }()
	err = await(ctx, "the node that was away holds all", func(ctx context.Context) (bool, error) {
		n, err := c.receipts(ctx, name)
		if err != nil || n == 0 { // it does not answer yet, or was given nothing
			r.up = time.Since(begun)
		}
		return err == nil && n >= want, nil
	})
	r.whole = time.Since(begun)
	if err := errors.Join(err, <-started); err != nil {
		return err
	}
	after, err := c.sentTo(ctx, name)
	r.stored = int64(after - before)
	return err
}

// sentTo is the bytes that the other nodes sent to a node.
func (c *cluster) sentTo(ctx context.Context, name string) (sum float64, err error) {
	for _, other := range c.names {
		if other == name {
			continue
		}
		n, err := c.metric(ctx, other, "chainmail_chain_sent_bytes_total", `peer="`+name+`"`)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// copyDir copies a directory with cp and makes the copy durable with sync, after
// the kernel has forgotten what it read and wrote before. It returns the bytes
// copied.
func copyDir(ctx context.Context, from, to string) (bytes int64, took time.Duration, err error) {
	if err := forget(from); err != nil {
		return 0, 0, err
	}
	syscall.Sync()
	begun := time.Now()
	for _, args := range [][]string{{"cp", "-r", from, to}, {"sync", "-f", to}} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return 0, 0, fmt.Errorf("%v: %w: %s", args, err, out)
		}
	}
	took = time.Since(begun)
	bytes, err = machine.DiskUsage(to)
	return bytes, took, errors.Join(err, os.RemoveAll(to))
}

// forget lets the kernel drop what it keeps of files in memory.
func forget(dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return errors.Join(unix.Fdatasync(int(f.Fd())), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
	})
}
