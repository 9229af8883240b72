package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFiguresKeepTheirRounds(t *testing.T) {
	var r results
	one := r.table("Rates", "A note.")
	for _, v := range []float64{100, 400, 200} {
		one.add("one node", "mails/s", v)
		one.add("three nodes", "mails/s", v/4)
		one.add("three nodes", "times one node", 0.25)
	}
	single := r.table("Catch-up", "Another.")
	single.add("catch-up", "s", 1234.5)
	single.add("catch-up", "lost", 0)

	var text bytes.Buffer
	if err := r.write(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"## Rates\n\nA note.\n\n|  | mails/s | times one node |\n| --- | ---: | ---: |\n",
		"| one node | 200 (100 to 400) |  |\n",
		"| three nodes | 50.0 (25.0 to 100) | 0.25 (0.25 to 0.25) |\n",
		"| catch-up | median (all rounds) |\n| --- | ---: |\n| s | 1234 |\n| lost | 0 |\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, &text)
		}
	}

	var coded bytes.Buffer
	if err := r.writeJSON(&coded); err != nil {
		t.Fatal(err)
	}
	var back results
	if err := json.Unmarshal(coded.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	f := back.Tables[0].Rows[0].Figures[0]
	if f.Name != "mails/s" || len(f.Rounds) != 3 || f.Median != 200 || f.Min != 100 || f.Max != 400 {
		t.Errorf("%+v", f)
	}
}

func TestMedian(t *testing.T) {
	for want, values := range map[float64][]float64{7: {7}, 2: {3, 1}, 5: {9, 5, 1}, 2.5: {4, 1, 2, 3}} {
		if got := median(values); got != want {
			t.Errorf("median of %v: %v", values, got)
		}
	}
}

func TestNumbers(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 0.0123: "0.012", 0.1: "0.10", 2.345: "2.35", 9.996: "10.0", 42.24: "42.2", 99.96: "100", 12345.6: "12346", -3.21: "-3.21",
	} {
		if got := number(v); got != want {
			t.Errorf("%v: %q, want %q", v, got, want)
		}
	}
}

// TestReplay: what is set in relation to what.
func TestReplay(t *testing.T) {
	r := replay{
		mails: 1000, raw: 50e6, stored: 20e6, ingest: 4 * time.Second, up: time.Second, whole: 3 * time.Second,
		receiver: 200 * time.Millisecond, senders: 100 * time.Millisecond, copied: 40e6, copying: time.Second,
	}
	var all results
	table := all.table("", "")
	r.enter(table)
	for name, want := range map[string]float64{
		"receipts/s from its first receipt on":   500,
		"MB/s of mail":                           25,
		"MB/s as stored":                         10,
		"mails/s that the two others took":       250,
		"times the ingest (aim: 3)":              2,
		"MB/s of cp and sync, as stored":         40,
		"times the copy (aim: 0.5)":              0.25,
		"µs of processor a mail, receiver":       200,
		"µs of processor a mail, senders":        100,
		"times the ingest, from its start on":    4. / 3,
		"s, from its start until it holds all":   3,
		"s, from its start to its first receipt": 1,
		"receipts/s from its start on":           1000. / 3,
	} {
		if got := table.figure("catch-up", name); len(got.Rounds) != 1 || got.Median != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	if n := len(table.Rows[0].Figures); n != 13 {
		t.Errorf("%d figures", n)
	}
}

// TestRateBesideOneNode: ratios are taken within a round.
func TestRateBesideOneNode(t *testing.T) {
	var all results
	table := all.table("", "")
	for _, speed := range []float64{1, 4, 2} { // of the machine, in each round
		one := rate{mails: 100, rate: 1000 * speed, cpu: 100 * time.Microsecond, first: 100 * time.Microsecond}
		three := rate{mails: 100, rate: 500 * speed, cpu: 360 * time.Microsecond, first: 150 * time.Microsecond, short: 5, others: 0.5}
		addRate(table, "three", 3, three, one)
	}
	for name, want := range map[string]float64{
		"mails/s": 1000, "times one node": 0.5, "µs of processor a mail": 360, "and copy": 120,
		"of that, the node that takes it": 150, "% short of copies": 5, "% of machine had by others": 50,
	} {
		if got := table.figure("three", name).Median; got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

func TestSampleOfPrometheusText(t *testing.T) {
	for _, tt := range []struct {
		line string
		want float64
		ok   bool
	}{
		{`sent_total{lane="live",peer="c"} 12`, 12, true},
		{`sent_total{lane="bulk",peer="c"} 1.5e+06`, 1.5e6, true},
		{`sent_total{lane="live",peer="b"} 12`, 0, false},
		{`sent_total_more{peer="c"} 12`, 0, false},
		{`# HELP sent_total peer="c"`, 0, false},
		{`sent_total 3`, 0, false},
	} {
		got, ok, err := sampleOf(tt.line, "sent_total", []string{`peer="c"`})
		if got != tt.want || ok != tt.ok || err != nil {
			t.Errorf("%s: %v, %v, %v", tt.line, got, ok, err)
		}
	}
	if got, ok, err := sampleOf("short_total 7", "short_total", nil); got != 7 || !ok || err != nil {
		t.Errorf("%v, %v, %v", got, ok, err)
	}
	if _, ok, err := sampleOf("short_total many", "short_total", nil); ok || err == nil {
		t.Errorf("took words for a number")
	}
}

func TestCopyDir(t *testing.T) {
	dir := t.TempDir()
	from := filepath.Join(dir, "from", "deep")
	if err := os.MkdirAll(from, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(from, "file"), make([]byte, 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	bytes, took, err := copyDir(t.Context(), filepath.Join(dir, "from"), filepath.Join(dir, "to"))
	if err != nil || bytes < 100_000 || took <= 0 {
		t.Errorf("%d bytes in %v, %v", bytes, took, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "to")); !os.IsNotExist(err) {
		t.Errorf("the copy is still there: %v", err)
	}
}

func TestWrongFlags(t *testing.T) {
	for want, check := range map[string]func(b *bench) error{
		"no such section": func(b *bench) error { return b.settle(false, "text", []string{"rate"}, nil) },
		"only flags":      func(b *bench) error { return b.settle(false, "text", nil, []string{"quick"}) },
		"text or json":    func(b *bench) error { return b.settle(false, "yaml", nil, nil) },
		"above 0":         func(b *bench) error { b.rounds = -1; return b.settle(false, "text", nil, nil) },
		"make build":      func(b *bench) error { b.program = "/no/such/program"; return b.settle(true, "json", nil, nil) },
	} {
		if err := check(&bench{program: os.Args[0]}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	b := &bench{program: os.Args[0], mails: 7}
	if err := b.settle(true, "text", []string{"rates"}, nil); err != nil || b.rounds != 1 || b.mails != 7 {
		t.Errorf("%+v, %v", b, err)
	}
}
