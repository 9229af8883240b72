package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"time"

	"chainmail/testcluster/load"
	"chainmail/testcluster/machine"
)

// contender is a way to take mail. Two may share one server.
type contender struct {
	name   string
	server string // key of the server in a field
	verb   string
}

const reference = "Postfix, queue synced, discard transport"

var contenders = []contender{
	{"chainmail, DATA", "chainmail", data},
	{"chainmail, BDAT", "chainmail", bdat},
	{reference, "postfix", data},
	{"go-smtp, discarding, DATA (a ceiling)", "go-smtp", data},
	{"smtp-sink, discarding, DATA (a ceiling)", "smtp-sink", data},
}

// servers are those that run side by side, and why others do not.
type servers struct {
	running map[string]*server
	absent  map[string]error
}

func (b *bench) startAll(ctx context.Context, dir string) (*servers, error) {
	s := &servers{map[string]*server{}, map[string]error{}}
	for name, start := range map[string]func() (*server, error){
		"chainmail": func() (*server, error) {
			n, err := b.startNode(ctx, filepath.Join(dir, "chainmail"))
			if err != nil {
				return nil, err
			}
			return &n.server, nil
		},
		"postfix":   func() (*server, error) { return startPostfix(ctx, filepath.Join(dir, "postfix")) },
		"go-smtp":   func() (*server, error) { return startDiscard(ctx) },
		"smtp-sink": func() (*server, error) { return startSink(ctx) },
	} {
		srv, err := start()
		if errors.Is(err, errAbsent) {
			s.absent[name] = err
			continue
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", name, err), s.stop())
		}
		s.running[name] = srv
	}
	return s, nil
}

func (s *servers) stop() error {
	var all error
	for name, srv := range s.running {
		if err := srv.stop(); err != nil {
			all = errors.Join(all, fmt.Errorf("%s: %w", name, err))
		}
	}
	return all
}

// sample is one measurement of one contender.
type sample struct {
	rate   float64       // mails per second
	cpu    time.Duration // of the server for one mail, with what it does afterwards
	own    time.Duration // of the load generator for one mail
	others float64       // the share of the machine that was taken by anybody else
	report load.Report
}

// series holds the samples of all contenders at one size and number of
// sessions, one of each in every round.
type series map[string][]sample

// rates measures mails per second of everybody at all sizes and sessions.
func (b *bench) rates(ctx context.Context) error {
	b.printf("## Rates\n\nMails per second; in brackets the median of the ratios to Postfix, each taken within a round.\n\n")
	bySize := map[int]map[int]series{}
	for _, size := range b.sizes {
		all, absent, err := b.ratesOf(ctx, size)
		if err != nil {
			return err
		}
		b.printRates(size, all, absent)
		bySize[size] = all
	}
	b.printGoals(bySize)
	return nil
}

func (b *bench) ratesOf(ctx context.Context, size int) (all map[int]series, absent map[string]error, err error) {
	dir, remove, err := b.subdir("rates")
	if err != nil {
		return nil, nil, err
	}
	defer remove()
	s, err := b.startAll(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	all = map[int]series{}
	for _, sessions := range b.sessions {
		all[sessions] = series{}
		for round := range b.rounds {
			for i := range contenders {
				c := contenders[(i+round)%len(contenders)]
				srv := s.running[c.server]
				if srv == nil {
					continue
				}
				m, err := b.measure(ctx, srv, c, size, sessions)
				if err != nil {
					return nil, nil, fmt.Errorf("%s, %s, %d sessions: %w", c.name, sizeName(size), sessions, err)
				}
				progress("%-8s %2d sessions, round %d: %7.0f mails/s, %6d + %d µs a mail, p50 %6.2f ms, others %2.0f %%  %s",
					sizeName(size), sessions, round+1, m.rate, m.cpu.Microseconds(), m.own.Microseconds(), m.report.Latency.P50, 100*m.others, c.name)
				all[sessions][c.name] = append(all[sessions][c.name], m)
			}
		}
	}
	return all, s.absent, nil
}

func (b *bench) measure(ctx context.Context, srv *server, c contender, size, sessions int) (sample, error) {
	syscall.Sync() // what the one before left to write is not for this one to wait for
	before, err := machine.ReadMeter(srv.pid)
	if err != nil {
		return sample{}, err
	}
	report, err := load.Run(ctx, load.Options{
		Target: srv.addr, Sessions: sessions, Size: size, Duration: b.time, BDAT: c.verb == bdat, Seed: rand.Uint64(),
	})
	if err != nil {
		return sample{}, err
	}
	if report.Acked == 0 || report.Refused+report.GivenUp+report.Unanswered > 0 {
		return sample{}, fmt.Errorf("not all mail was taken:\n%s", report)
	}
	after, err := machine.ReadMeter(srv.pid)
	if err != nil {
		return sample{}, err
	}
	settled, err := machine.Settle(ctx, srv.pid)
	mails := time.Duration(report.Acked)
	return sample{
		rate: report.MailsPerSecond, cpu: (settled - before.Servers) / mails, own: (after.Own - before.Own) / mails,
		others: machine.Others(before, after), report: report,
	}, err
}
