package archive_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"chainmail/archive"
	"chainmail/archive/record"
)

// BenchmarkCommit archives text-like mail from 32 senders, each mail synced
// before the next of the same sender.
func BenchmarkCommit(b *testing.B) {
	for _, size := range []int{4 << 10, 50 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			a, err := archive.Open(archive.Options{Dir: b.TempDir(), MinFree: 1})
			if err != nil {
				b.Fatal(err)
			}
			defer a.Close()
			text := message(1, size)
			b.SetBytes(int64(size))
			b.SetParallelism(16)
			b.RunParallel(func(pb *testing.PB) {
				msg := append([]byte(nil), text...)
				for n := uint64(0); pb.Next(); n++ {
					binary.BigEndian.PutUint64(msg, n)
					copy(msg[8:], fmt.Sprintf("%p", msg))
					d := a.NewDraft(b.Context())
					if _, err := d.Write(msg); err != nil {
						b.Error(err)
					}
					if _, err := d.Commit(record.Envelope{From: "a@example.com", To: []string{"b@example.com"}, Client: "192.0.2.1:1", Helo: "x", Connector: "smtp"}); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

// BenchmarkIntake replicates one archive on disk to another, which is empty, in
// the containers of a backfill, and tells apart what the giver and the taker
// take: in processor time too, which is the steadier figure. A container is
// entered while the one before is synced.
func BenchmarkIntake(b *testing.B) {
	for _, k := range []struct{ size, mails, container int }{
		{4 << 10, 60_000, 2 << 20},
		{50 << 10, 12_000, 4 << 20},
	} {
		b.Run(fmt.Sprintf("%dKiB", k.size>>10), func(b *testing.B) {
			from := benchArchive(b)
			fillParallel(b, from, k.size, k.mails)
			var export, intake spent
			for b.Loop() {
				replicate(b, from, benchArchive(b), k.container, &export, &intake)
			}
			mails := float64(b.N * k.mails)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(mails/intake.wall.Seconds(), "mails/s")
			b.ReportMetric(mails*float64(k.size)/1e6/intake.wall.Seconds(), "MB/s")
			b.ReportMetric(float64(intake.cpu.Microseconds())/mails, "intake-cpu-µs/mail")
			b.ReportMetric(float64(export.cpu.Microseconds())/mails, "export-cpu-µs/mail")
		})
	}
}

// spent adds up time: of the clock, and of the processors in this process.
type spent struct{ wall, cpu time.Duration }

func (s *spent) measure(f func()) {
	var before, after syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before) // fails for no valid argument
	start := time.Now()
	f()
	s.wall += time.Since(start)
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	s.cpu += time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
}

func benchArchive(b *testing.B) *archive.Archive {
	a, err := archive.Open(archive.Options{Dir: b.TempDir(), MinFree: 1})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := a.Close(); err != nil {
			b.Error(err)
		}
	})
	return a
}

// fillParallel archives text-like mail, each of its own.
func fillParallel(b *testing.B, a *archive.Archive, size, mails int) {
	var work errgroup.Group
	text := message(1, size)
	for s := range 32 {
		work.Go(func() error {
			msg := slices.Clone(text)
			for n := s; n < mails; n += 32 {
				binary.BigEndian.PutUint64(msg, uint64(n))
				d := a.NewDraft(b.Context())
				if _, err := d.Write(msg); err != nil {
					return err
				}
				if _, err := d.Commit(record.Envelope{From: "a@example.com", To: []string{"b@example.com"}, Client: "192.0.2.1:1", Helo: "x", Connector: "smtp"}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := work.Wait(); err != nil {
		b.Fatal(err)
	}
}

type parcel struct {
	archive.Exported
	chunks [][]byte
}

// replicate brings the log of one archive to another.
func replicate(b *testing.B, from, to *archive.Archive, container int, export, intake *spent) {
	log, _ := from.Log(from.Store())
	last := log.Held.Last()
	var syncing errgroup.Group
	wait := func() {
		if err := syncing.Wait(); err != nil {
			b.Fatal(err)
		}
	}
	for next := record.Seq(1); next <= last; {
		var parcels []parcel
		export.measure(func() {
			for size := 0; next <= last && size < container; next++ {
				parcels = append(parcels, export1(b, from, record.Position{Store: log.Store, Seq: next}))
				for _, c := range parcels[len(parcels)-1].chunks {
					size += len(c)
				}
			}
		})
		intake.measure(func() {
			i := to.NewIntake(b.Context(), "a")
			if err := takeAll(i, parcels); err != nil {
				b.Fatal(err)
			}
			wait()
			syncing.Go(func() error {
				_, err := i.Sync()
				return err
			})
		})
	}
	intake.measure(wait)
	if got, _ := to.Log(log.Store); got.Held.Last() != last {
		b.Fatalf("the log ends at %v, want %v", got.Held.Last(), last)
	}
}

func export1(b *testing.B, from *archive.Archive, p record.Position) (x parcel) {
	var err error
	if x.Exported, err = from.Export(p); err == nil {
		err = from.Chunks(p.Store, x.Receipt.Body, func(chunk []byte) error {
			x.chunks = append(x.chunks, chunk)
			return nil
		})
	}
	if err != nil {
		b.Fatal(err)
	}
	return x
}

func takeAll(i *archive.Intake, parcels []parcel) error {
	for _, p := range parcels {
		want, err := i.Receipt(p.Receipt.Position, p.Encoded, true)
		if err != nil {
			return err
		}
		for _, c := range p.chunks {
			if !want {
				break
			}
			if err := i.Chunk(c); err != nil {
				return err
			}
		}
	}
	return i.Enter()
}
