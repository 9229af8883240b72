// Command peerbench measures chainmail beside its peers on one machine, in one
// run, with one load generator, and prints Markdown for docs/performance.md.
//
//	go run ./testcluster/peerbench [-quick] [-out FILE] [-only rates,latency,memory,start,disk]
//
// Every server runs as a process of its own on the loopback interface, with its
// data in a new directory on a real disk, and all of it is removed at the end.
// Rounds are interleaved: every server is measured once before any is measured
// again, beginning with another one each time, and figures are compared within
// a round before their median is taken. What else the machine does then hits
// all of them alike.
//
// Postfix comes from its Debian package and runs from a private configuration
// (see postfix.go); it needs root. A server that is not there gets a line that
// says so, and the rest is measured.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"chainmail/testcluster/machine"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == discardCommand {
		exit(serveDiscard(os.Args[2]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exit(run(ctx))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "peerbench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// bench is one run of the benchmark.
type bench struct {
	binary   string // chainmail's
	dir      string // for all data; removed at the end
	out      io.Writer
	quick    bool
	rounds   int
	time     time.Duration // of one measurement of a rate
	sessions []int
	sizes    []int
}

// section measures one subject and prints it.
type section struct {
	name string
	run  func(*bench, context.Context) error
}

// sections are what can be measured, in the order in which it is.
var sections = []section{
	{"rates", (*bench).rates},
	{"latency", (*bench).latency},
	{"memory", (*bench).memory},
	{"start", (*bench).start},
	{"disk", (*bench).disk},
}

func run(ctx context.Context) (err error) {
	b := &bench{out: os.Stdout}
	out := flag.String("out", "", "also write the tables to this `FILE`")
	only := flag.String("only", "", "comma-separated `SECTIONS` to measure: rates, latency, memory, start, disk; all by default")
	dir := flag.String("dir", "/var/tmp", "`DIR` on a real disk, in which all data is made and removed")
	sessions := flag.String("sessions", "", "comma-separated `NUMBERS` of sessions; 1,8,32,64, with -quick 1,32")
	sizes := flag.String("sizes", "4096,51200,1048576", "comma-separated message sizes in `BYTES`")
	flag.StringVar(&b.binary, "chainmail", "bin/chainmail", "`PROGRAM` to measure")
	flag.BoolVar(&b.quick, "quick", false, "few rounds and small archives: minutes instead of an hour")
	flag.IntVar(&b.rounds, "rounds", 0, "rounds of each measurement; 5, with -quick 3")
	flag.DurationVar(&b.time, "time", 0, "length of one measurement of a rate; 4s, with -quick 2s")
	flag.Parse()
	b.defaults(sessions)
	if b.sessions, err = numbers(*sessions); err != nil {
		return err
	}
	if b.sizes, err = numbers(*sizes); err != nil {
		return err
	}
	if *out != "" {
		f, err := os.Create(*out)
		if err != nil {
			return err
		}
		defer f.Close()
		b.out = io.MultiWriter(os.Stdout, f)
	}
	if b.binary, err = filepath.Abs(b.binary); err != nil {
		return err
	}
	if b.dir, err = machine.MakeDir(*dir, "peerbench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	return b.all(ctx, *only)
}

func (b *bench) defaults(sessions *string) {
	rounds, length, counts := 5, 4*time.Second, "1,8,32,64"
	if b.quick {
		rounds, length, counts = 3, 2*time.Second, "1,32"
	}
	if b.rounds == 0 {
		b.rounds = rounds
	}
	if b.time == 0 {
		b.time = length
	}
	if *sessions == "" {
		*sessions = counts
	}
}

func (b *bench) all(ctx context.Context, only string) error {
	wanted := strings.FieldsFunc(only, func(r rune) bool { return r == ',' || r == ' ' })
	for _, name := range wanted {
		if !slices.ContainsFunc(sections, func(s section) bool { return s.name == name }) {
			return fmt.Errorf("-only %s: no such section; see -help", name)
		}
	}
	if err := b.machine(); err != nil {
		return err
	}
	for _, s := range sections {
		if len(wanted) > 0 && !slices.Contains(wanted, s.name) {
			continue
		}
		if err := s.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

func (b *bench) printf(format string, args ...any) { fmt.Fprintf(b.out, format, args...) }

// progress tells the person who waits what is being done.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

func numbers(list string) ([]int, error) {
	var out []int
	for field := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(field))
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%q: want numbers from 1, separated by commas", list)
		}
		out = append(out, n)
	}
	return out, nil
}
