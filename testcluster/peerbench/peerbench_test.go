package main

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"chainmail/testcluster/load"
	"chainmail/testcluster/machine"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == discardCommand {
		exit(serveDiscard(os.Args[2]))
	}
	os.Exit(m.Run())
}

// Each peer starts, takes mail from the generator, shows its processor time and
// goes when it is told to.
func TestPeersTakeMail(t *testing.T) {
	for name, start := range map[string]func(dir string) (*server, error){
		"go-smtp":   func(string) (*server, error) { return startDiscard(t.Context()) },
		"smtp-sink": func(string) (*server, error) { return startSink(t.Context()) },
		"postfix":   func(dir string) (*server, error) { return startPostfix(t.Context(), dir) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := machine.MakeDir("/var/tmp", "peerbench-")
			if err != nil {
				t.Skip(err)
			}
			defer os.RemoveAll(dir)
			s, err := start(dir)
			if errors.Is(err, errAbsent) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			report, err := load.Run(t.Context(), load.Options{Target: s.addr, Sessions: 4, Count: 50})
			if err != nil || report.Acked != 50 {
				t.Errorf("%v: %v", err, report)
			}
			if _, err := machine.CPU(s.pid); err != nil {
				t.Error(err)
			}
			if err := s.stop(); err != nil {
				t.Error(err)
			}
			if answers(s.addr) {
				t.Error("it still answers")
			}
		})
	}
}

func TestRatiosAreTakenWithinARound(t *testing.T) {
	of := func(rates ...float64) (all []sample) {
		for _, r := range rates {
			all = append(all, sample{rate: r, cpu: time.Duration(1e9 / r)})
		}
		return all
	}
	s := series{reference: of(100, 50, 200), "chainmail, DATA": of(800, 500, 1800)}
	var out bytes.Buffer
	b := &bench{out: &out, sessions: []int{32}}
	b.printRates(4096, map[int]series{32: s}, map[string]error{"smtp-sink": errAbsent})
	b.printGoals(map[int]map[int]series{4096: {32: s}})
	for _, want := range []string{
		"| chainmail, DATA | 800 (9.00) |",
		"| " + reference + " | 100 |",
		"| smtp-sink, discarding, DATA (a ceiling) | not on this machine |",
		"| chainmail, DATA, 4 KiB | 8.0 | 9.00 | 8.00 to 10.00 | 1/9.0 |",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no line %q in\n%s", want, &out)
		}
	}
}
