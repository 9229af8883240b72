package local

import (
	"io"
	"os"
	"strings"
)

// What of a log is looked at, and shown, in bytes.
const (
	wordsTail = 64 << 10
	wordsLine = 1000
)

// finals begin the lines in which a program says why it ends.
var finals = []string{"chainmail: ", "panic: ", "fatal error: "}

// lastWords is why a process ended, by what it said in its log from an offset on:
// the lines that tell so, else the last one that there is; with what puts them
// behind an error. The rest is for who reads the log.
func lastWords(log *os.File, from int64) string {
	if info, err := log.Stat(); err == nil {
		from = max(from, info.Size()-wordsTail)
	}
	b, err := io.ReadAll(io.NewSectionReader(log, from, wordsTail))
	if err != nil {
		return ""
	}
	var last string
	var why []string
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if len(line) > wordsLine {
			line = strings.ToValidUTF8(line[:wordsLine], "") + "…"
		}
		last = line
		for _, f := range finals {
			if strings.HasPrefix(line, f) && len(why) < 5 {
				why = append(why, strings.TrimPrefix(line, finals[0]))
			}
		}
	}
	switch {
	case len(why) > 0:
		return ": " + strings.Join(why, "; ")
	case last != "":
		return ": " + last
	}
	return ""
}
