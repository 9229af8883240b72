package main

import (
	"fmt"
	"slices"
)

func (b *bench) printRates(size int, all map[int]series, absent map[string]error) {
	head := []string{sizeName(size)}
	for _, n := range b.sessions {
		head = append(head, plural(n, "session"))
	}
	var rates, cpu, noise, latency [][]string
	for _, c := range contenders {
		if err := absent[c.server]; err != nil {
			rates = append(rates, append([]string{c.name, err.Error()}, make([]string, len(b.sessions)-1)...))
			continue
		}
		r, u, o, l := []string{c.name}, []string{c.name}, []string{c.name}, []string{c.name}
		for _, n := range b.sessions {
			s := all[n]
			r = append(r, fmt.Sprintf("%.0f%s", median(column(s[c.name], rate)), ratio(s, c.name)))
			u = append(u, fmt.Sprintf("%.0f + %.0f", median(column(s[c.name], micros)), median(column(s[c.name], ownMicros))))
			o = append(o, fmt.Sprintf("%.0f", 100*median(column(s[c.name], foreign))))
			l = append(l, fmt.Sprintf("%.2f / %.2f", median(column(s[c.name], p50)), median(column(s[c.name], p99))))
		}
		rates, cpu, noise, latency = append(rates, r), append(cpu, u), append(noise, o), append(latency, l)
	}
	b.printf("### %s: mails per second\n\n", sizeName(size))
	b.table(head, rates)
	b.printf("Processor time of the server for one mail, in µs, with what it does after the answer; and after the plus sign that of the load generator, which takes its share of the same cores:\n\n")
	b.table(head, cpu)
	b.printf("Share of the machine that others had meanwhile, in %%; where it is not small, the rates say little and the processor times more:\n\n")
	b.table(head, noise)
	b.printf("Time to the answer, p50 / p99, in ms:\n\n")
	b.table(head, latency)
}

func rate(s sample) float64      { return s.rate }
func micros(s sample) float64    { return float64(s.cpu.Nanoseconds()) / 1000 }
func ownMicros(s sample) float64 { return float64(s.own.Nanoseconds()) / 1000 }
func foreign(s sample) float64   { return s.others }
func p50(s sample) float64       { return s.report.Latency.P50 }
func p99(s sample) float64       { return s.report.Latency.P99 }

func column(samples []sample, value func(sample) float64) []float64 {
	var out []float64
	for _, s := range samples {
		out = append(out, value(s))
	}
	return out
}

// ratio is the cell of the median of ratios.
func ratio(s series, name string) string {
	r := ratios(s, name, rate)
	if name == reference || len(r) == 0 {
		return ""
	}
	return fmt.Sprintf(" (%.2f)", median(r))
}

// ratios compares each sample with that of the reference in the same round.
func ratios(s series, name string, value func(sample) float64) []float64 {
	var out []float64
	for i := range min(len(s[name]), len(s[reference])) {
		out = append(out, value(s[name][i])/value(s[reference][i]))
	}
	return out
}

// goals are how many times Postfix chainmail is to be, at 32 sessions.
var goals = []struct {
	name string
	size int
	want float64
}{
	{"chainmail, DATA", 4 << 10, 8},
	{"chainmail, DATA", 50 << 10, 2.8},
	{"chainmail, BDAT", 50 << 10, 3},
	{"chainmail, DATA", 1 << 20, 1.2},
}

// printGoals says by how much chainmail is faster than Postfix, in the median
// and between which rounds, and how much less processor time it takes.
func (b *bench) printGoals(bySize map[int]map[int]series) {
	const sessions = 32
	var rows [][]string
	for _, g := range goals {
		s := bySize[g.size][sessions]
		faster, cheaper := ratios(s, g.name, rate), ratios(s, g.name, micros)
		if len(faster) == 0 {
			continue
		}
		rows = append(rows, []string{
			g.name + ", " + sizeName(g.size), fmt.Sprintf("%.1f", g.want), fmt.Sprintf("%.2f", median(faster)),
			fmt.Sprintf("%.2f to %.2f", slices.Min(faster), slices.Max(faster)), fmt.Sprintf("1/%.1f", 1/median(cheaper)),
		})
	}
	if len(rows) == 0 {
		return
	}
	b.printf("### Against Postfix at %d sessions\n\n", sessions)
	b.table([]string{"", "times its rate, wanted", "median", "all rounds", "of its processor time"}, rows)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
