package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// results are all figures of a run, and their JSON form.
type results struct {
	Machine [][]string `json:"machine"`
	Tables  []*table   `json:"tables"`
}

// table holds figures of several contenders, or of one.
type table struct {
	Title string `json:"title"`
	Note  string `json:"note"`
	Rows  []*row `json:"rows"`
}

type row struct {
	Name    string    `json:"name"`
	Figures []*figure `json:"figures"`
}

// figure is one quantity, measured in every round.
type figure struct {
	Name   string    `json:"name"` // with its unit
	Rounds []float64 `json:"rounds"`
	Median float64   `json:"median"`
	Min    float64   `json:"min"`
	Max    float64   `json:"max"`
}

// table begins a table.
func (r *results) table(title, note string) *table {
	t := &table{Title: title, Note: note}
	r.Tables = append(r.Tables, t)
	return t
}

// add enters what a round gave.
func (t *table) add(rowName, figureName string, value float64) {
	f := t.figure(rowName, figureName)
	f.Rounds = append(f.Rounds, value)
	f.Median, f.Min, f.Max = median(f.Rounds), slices.Min(f.Rounds), slices.Max(f.Rounds)
}

// figure finds a figure or makes it.
func (t *table) figure(rowName, figureName string) *figure {
	i := slices.IndexFunc(t.Rows, func(r *row) bool { return r.Name == rowName })
	if i < 0 {
		i = len(t.Rows)
		t.Rows = append(t.Rows, &row{Name: rowName})
	}
	r := t.Rows[i]
	if i := slices.IndexFunc(r.Figures, func(f *figure) bool { return f.Name == figureName }); i >= 0 {
		return r.Figures[i]
	}
	f := &figure{Name: figureName}
	r.Figures = append(r.Figures, f)
	return f
}

// median of an even number of values is the mean of the middle two.
func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

func (r *results) writeJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// write prints Markdown.
func (r *results) write(w io.Writer) error {
	var out strings.Builder
	fmt.Fprintf(&out, "# Measured by `clusterbench`\n\n")
	grid(&out, []string{"machine", ""}, r.Machine)
	for _, t := range r.Tables {
		t.write(&out)
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// write prints a table of several contenders with a line for each of them, and
// one of a single subject with a line for each figure.
func (t *table) write(out *strings.Builder) {
	fmt.Fprintf(out, "## %s\n\n%s\n\n", t.Title, t.Note)
	if len(t.Rows) == 1 {
		var lines [][]string
		for _, f := range t.Rows[0].Figures {
			lines = append(lines, []string{f.Name, f.String()})
		}
		grid(out, []string{t.Rows[0].Name, "median (all rounds)"}, lines)
		return
	}
	var names []string
	for _, r := range t.Rows {
		for _, f := range r.Figures {
			if !slices.Contains(names, f.Name) {
				names = append(names, f.Name)
			}
		}
	}
	var lines [][]string
	for _, r := range t.Rows {
		line := append([]string{r.Name}, make([]string, len(names))...)
		for _, f := range r.Figures {
			line[1+slices.Index(names, f.Name)] = f.String()
		}
		lines = append(lines, line)
	}
	grid(out, append([]string{""}, names...), lines)
}

// String is "median (min to max)".
func (f *figure) String() string {
	if len(f.Rounds) == 1 {
		return number(f.Median)
	}
	return fmt.Sprintf("%s (%s to %s)", number(f.Median), number(f.Min), number(f.Max))
}

// number gives three digits, or all those before the point.
func number(v float64) string {
	switch a := math.Abs(v); {
	case v == 0:
		return "0"
	case a >= 99.95:
		return fmt.Sprintf("%.0f", v)
	case a >= 9.995:
		return fmt.Sprintf("%.1f", v)
	case a >= 0.0995:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// grid prints cells as a Markdown table.
func grid(out *strings.Builder, head []string, lines [][]string) {
	rule := slices.Repeat([]string{"---:"}, len(head))
	rule[0] = "---"
	for _, cells := range slices.Concat([][]string{head, rule}, lines) {
		fmt.Fprintf(out, "| %s |\n", strings.Join(cells, " | "))
	}
	out.WriteString("\n")
}
