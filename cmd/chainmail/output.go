package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf16"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"chainmail/node"
)

// outputFormat is the value of -o.
type outputFormat string

const (
	formatHuman outputFormat = "human"
	formatJSON  outputFormat = "json"
)

// String, Set and Type make it a pflag.Value.
func (f *outputFormat) String() string { return string(*f) }

// Set accepts "human" and "json".
func (f *outputFormat) Set(s string) error {
	switch v := outputFormat(s); v {
	case formatHuman, formatJSON:
		*f = v
		return nil
	}
	return fmt.Errorf("use human or json")
}

// Type names the value in the help.
func (f *outputFormat) Type() string { return "human|json" }

func addOutputFlag(flags *pflag.FlagSet, format *outputFormat) {
	*format = formatHuman
	flags.VarP(format, "output", "o", "form of the output; json is one object a line")
}

// printJSON writes one object in one line. What could steer a terminal is
// written as \u escapes, which mean the same to a program.
func printJSON(w io.Writer, v any) error {
	var line strings.Builder
	e := json.NewEncoder(&line)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, escapeJSON(strings.TrimSuffix(line.String(), "\n")))
	return err
}

func escapeJSON(s string) string {
	var b strings.Builder
	for _, r := range s {
		if !steers(r) {
			b.WriteRune(r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	return b.String()
}

// terminalWidth is the number of columns of w, and whether w is a terminal.
func terminalWidth(w io.Writer) (int, bool) {
	f, ok := w.(*os.File)
	if !ok {
		return 0, false
	}
	columns, _, err := term.GetSize(int(f.Fd()))
	return columns, err == nil && columns > 0
}

// table prints rows under a heading with aligned columns. Cells are sanitised.
// The last column takes what is left of the width; a width of 0 shortens
// nothing.
type table struct {
	width int
	rows  [][]string
}

func (t *table) add(cells ...string) {
	for i, c := range cells {
		cells[i] = sanitize(c)
	}
	t.rows = append(t.rows, cells)
}

func (t *table) print(w io.Writer) error {
	var widths []int
	for _, row := range t.rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], columns(cell))
		}
	}
	for _, row := range t.rows {
		var line strings.Builder
		used := 0
		for i, cell := range row {
			if last := i == len(row)-1; last {
				if t.width > 0 {
					cell = truncate(cell, max(t.width-used, 8))
				}
				line.WriteString(cell)
				continue
			}
			line.WriteString(cell)
			line.WriteString(strings.Repeat(" ", widths[i]-columns(cell)+2))
			used += widths[i] + 2
		}
		if _, err := fmt.Fprintln(w, strings.TrimRight(line.String(), " ")); err != nil {
			return err
		}
	}
	return nil
}

// printAsList prints rows of a name and a value. Values are never shortened: a
// terminal wraps them.
func (t *table) printAsList(w io.Writer) error {
	width := 0
	for _, row := range t.rows {
		if len(row) > 1 {
			width = max(width, min(columns(row[0]), 24))
		}
	}
	for _, row := range t.rows {
		line := row[0]
		if len(row) > 1 {
			line += strings.Repeat(" ", max(width-columns(line), 0)+2) + row[1]
		}
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " ")); err != nil {
			return err
		}
	}
	return nil
}

// sizeFlag lets a flag take sizes as the configuration does.
type sizeFlag struct{ size *node.Size }

// String, Set and Type make it a pflag.Value.
func (f *sizeFlag) String() string {
	if f.size == nil {
		return ""
	}
	return f.size.String()
}

// Set reads a size such as 50KiB.
func (f *sizeFlag) Set(s string) error { return f.size.UnmarshalText([]byte(s)) }

// Type names the value in the help.
func (f *sizeFlag) Type() string { return "SIZE" }

// durationFlag lets a flag take durations as the configuration does.
type durationFlag struct{ duration *node.Duration }

// String, Set and Type make it a pflag.Value.
func (f *durationFlag) String() string {
	if f.duration == nil {
		return ""
	}
	return f.duration.String()
}

// Set reads a duration such as 90s or 2d.
func (f *durationFlag) Set(s string) error { return f.duration.UnmarshalText([]byte(s)) }

// Type names the value in the help.
func (f *durationFlag) Type() string { return "DURATION" }
