// Command vagrant breaks the cluster of the Vagrantfile on purpose, host by host,
// while mail comes in through its balancer, and checks that every acknowledged
// mail is on every node afterwards:
//
//	make deb && go run ./testcluster/vagrant
//
// It makes the hosts that are missing (vagrant up), and leaves them running unless
// -destroy is given. Each line that it prints begins with the seconds since it
// began; a table of all steps ends it. The exit code is 1 when a mail was lost, a
// step failed or was not reached.
//
// A step goes like this: mail flows (-before), something breaks and stays broken
// (-hold), it is repaired, the cluster gets green, the mail stops, and then every
// node is asked for every mail that was answered 250 since the program began.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "vagrant:", err)
		os.Exit(1)
	}
}

// options are what the flags say.
type options struct {
	vagrant  string
	dir      string
	log      string
	only     string
	destroy  bool
	sessions int
	rate     float64
	size     int
	before   time.Duration // mail flows before something breaks
	hold     time.Duration // it stays broken
	patience time.Duration // for a cluster to get green
}

func parseFlags() (options, error) {
	var o options
	flag.StringVar(&o.vagrant, "vagrant", "vagrant", "`PROGRAM` that makes the hosts")
	flag.StringVar(&o.dir, "dir", ".", "`DIR` of the Vagrantfile")
	flag.StringVar(&o.log, "log", "", "add what vagrant prints to this `FILE`")
	flag.StringVar(&o.only, "only", "", "comma-separated `STEPS` to do: "+strings.Join(stepNames(), ", ")+"; all by default")
	flag.BoolVar(&o.destroy, "destroy", false, "destroy the hosts at the end")
	flag.IntVar(&o.sessions, "sessions", 4, "connections at a time")
	flag.Float64Var(&o.rate, "rate", 10, "mails per second of all sessions")
	flag.IntVar(&o.size, "size", 4096, "`BYTES` of a mail")
	flag.DurationVar(&o.before, "before", 10*time.Second, "how long mail flows before something breaks")
	flag.DurationVar(&o.hold, "hold", 30*time.Second, "how long it stays broken")
	flag.DurationVar(&o.patience, "patience", 10*time.Minute, "how long the cluster may take to get green")
	flag.Parse()
	if flag.NArg() > 0 {
		return o, fmt.Errorf("unknown argument %q: there are only flags, see -h", flag.Arg(0))
	}
	if o.sessions < 1 || o.rate <= 0 || o.size < 1 {
		return o, errors.New("-sessions, -rate and -size must be above 0")
	}
	return o, nil
}

func run(ctx context.Context) (err error) {
	o, err := parseFlags()
	if err != nil {
		return err
	}
	steps, err := choose(o.only)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "chainmail-vagrant-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	var log io.Writer = io.Discard
	if o.log != "" {
		f, err := os.OpenFile(o.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		log = f
	}
	acked, err := os.Create(filepath.Join(tmp, "acked"))
	if err != nil {
		return err
	}
	defer acked.Close()

	d := &drill{
		options: o,
		lab:     &lab{vagrant: o.vagrant, dir: o.dir, tmp: tmp, log: log},
		acked:   &ackList{w: acked},
		list:    acked.Name(),
		out:     os.Stdout,
		begun:   time.Now(),
	}
	defer d.lab.close()
	if o.destroy {
		defer func() {
			d.say("destroying the hosts")
			// Also when a signal ended the test.
			err = errors.Join(err, d.lab.run(context.WithoutCancel(ctx), "destroy", "-f"))
		}()
	}
	if err := d.prepare(ctx); err != nil {
		return err
	}
	results := d.do(ctx, steps)
	fmt.Fprintf(d.out, "\n%s\n", table(results))
	return verdict(results)
}
