package mail_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"chainmail/archive/mail"
)

// What recognising a journal report adds to receiving it, hash of the inner
// message included.
func BenchmarkJournalParser(b *testing.B) {
	report, err := os.ReadFile("testdata/journal/exchange2016.eml")
	if err != nil {
		b.Fatal(err)
	}
	line := strings.Repeat("All work and no play makes Jack a dull boy.", 2)[:76] + "\r\n"
	report = bytes.Replace(report, []byte("The figures"), []byte(strings.Repeat(line, 1<<20/len(line))+"The figures"), 1)
	b.SetBytes(int64(len(report)))
	for b.Loop() {
		p := mail.NewJournalParser()
		for chunk := report; len(chunk) > 0; chunk = chunk[min(32<<10, len(chunk)):] {
			p.Write(chunk[:min(32<<10, len(chunk))])
		}
		if _, err := p.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
