// Command clusterbench measures clusters of real nodes on one machine, in one
// run, and prints Markdown for docs/performance.md or, with -o json, every
// figure of every round.
//
//	go run ./testcluster/clusterbench [-quick] [-o json] [-only rates,latency,catchup,failover,front]
//
// Every node is a process of its own on the loopback interface, with its data
// in a new directory on a real disk; all of it is removed at the end. What is
// compared is measured in turn, each once before any is measured again, and
// ratios are taken within such a round. What else the machine does then hits
// all of them alike.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"chainmail/testcluster/machine"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "clusterbench:", err)
		os.Exit(1)
	}
}

// bench is one run of the benchmark.
type bench struct {
	program string // chainmail
	dir     string // for all data; removed at the end
	rounds  int
	time    time.Duration // of one measurement under load
	mails   int64         // that a node misses in the measurement of catch-up
	results results
}

// sections are what can be measured, in the order in which it is.
var sections = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{"rates", (*bench).rates},
	{"latency", (*bench).latency},
	{"catchup", (*bench).catchUp},
	{"failover", (*bench).failOver},
	{"front", (*bench).front},
}

func run(ctx context.Context) (err error) {
	b := &bench{}
	format := flag.String("o", "text", "`FORMAT` of the results: text (Markdown) or json")
	only := flag.String("only", "", "comma-separated `SECTIONS` to measure: rates, latency, catchup, failover, front; all by default")
	parent := flag.String("dir", "/var/tmp", "`DIR` on a real disk, in which all data is made and removed")
	quick := flag.Bool("quick", false, "one short round of everything, in a minute: to see that it works")
	flag.StringVar(&b.program, "chainmail", "bin/chainmail", "`PROGRAM` to measure, of make build")
	flag.IntVar(&b.rounds, "rounds", 0, "rounds of each measurement; 3, with -quick 1")
	flag.DurationVar(&b.time, "time", 0, "length of one measurement under load; 3s, with -quick 500ms")
	flag.Int64Var(&b.mails, "mails", 0, "`NUMBER` of mails of 50 KiB that a node misses and is given; 20000, with -quick 2000")
	flag.Parse()
	wanted := strings.FieldsFunc(*only, func(r rune) bool { return r == ',' || r == ' ' })
	if err := b.settle(*quick, *format, wanted, flag.Args()); err != nil {
		return err
	}
	if b.dir, err = machine.MakeDir(*parent, "clusterbench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	b.results.Machine = machine.Facts(b.dir, b.program)
	for _, s := range sections {
		if len(wanted) > 0 && !slices.Contains(wanted, s.name) {
			continue
		}
		if err := s.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	if *format == "json" {
		return b.results.writeJSON(os.Stdout)
	}
	return b.results.write(os.Stdout)
}

// settle fills in what was not given, and checks what was.
func (b *bench) settle(quick bool, format string, wanted, rest []string) (err error) {
	rounds, length, mails := 3, 3*time.Second, int64(20000)
	if quick {
		rounds, length, mails = 1, 500*time.Millisecond, 2000
	}
	if b.rounds == 0 {
		b.rounds = rounds
	}
	if b.time == 0 {
		b.time = length
	}
	if b.mails == 0 {
		b.mails = mails
	}
	var names []string
	for _, s := range sections {
		names = append(names, s.name)
	}
	for _, name := range wanted {
		if !slices.Contains(names, name) {
			return fmt.Errorf("-only %s: no such section: give some of %s", name, strings.Join(names, ","))
		}
	}
	switch {
	case len(rest) > 0:
		return fmt.Errorf("%s: what is this for? Give only flags; -help lists them", rest[0])
	case format != "text" && format != "json":
		return fmt.Errorf("-o %s: want text or json", format)
	case b.rounds < 1 || b.time < 0 || b.mails < 1:
		return errors.New("-rounds, -time and -mails: give numbers above 0")
	}
	if b.program, err = filepath.Abs(b.program); err != nil {
		return err
	}
	if _, err := os.Stat(b.program); err != nil {
		return fmt.Errorf("no program to measure: %w: run make build first, or name one with -chainmail", err)
	}
	return nil
}

// progress tells the person who waits what is being done.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}
