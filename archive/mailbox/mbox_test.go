package mailbox_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"chainmail/archive/mailbox"

	"github.com/google/go-cmp/cmp"
)

const from = "From alice@example.com Tue May 14 09:30:00 2024\n"

func TestMboxVariants(t *testing.T) {
	crlf := func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }
	for name, tt := range map[string]struct {
		variant mailbox.Mbox
		in      string
		want    []string
	}{
		"two messages":            {"", from + "A: 1\n\nx\n\n" + from + "A: 2\n\ny\n\n", []string{"A: 1\n\nx\n", "A: 2\n\ny\n"}},
		"no blank lines between":  {"", from + "A: 1\n\nx\n" + from + "A: 2\n\ny", []string{"A: 1\n\nx", "A: 2\n\ny"}},
		"empty messages":          {"", from + "\n" + from + from + "\n", []string{"", "", ""}},
		"CRLF":                    {"", crlf(from + "A: 1\n\nx\n\n" + from + "A: 2\n\n>From y\n\n"), []string{"A: 1\r\n\r\nx\r\n", "A: 2\r\n\r\nFrom y\r\n"}},
		"LF file, CRLF message":   {"", from + "A: 1\r\n\r\nx\r\n\n" + from + "y\r\n", []string{"A: 1\r\n\r\nx\r\n", "y\r"}},
		"blank lines at first":    {"", "\n\n" + from + "x\n", []string{"x"}},
		"prose is no From_ line":  {"", from + "A: 1\n\nFrom here on\n\nFrom there\n\n", []string{"A: 1\n\nFrom here on\n\nFrom there\n"}},
		"Thunderbird":             {"", "From - Tue May 14 09:30:00 2024\nx\n\nFrom - Wed May 15 09:30:00 2024\ny\n\n", []string{"x\n", "y\n"}},
		"zone in the date":        {"", from + "x\n\nFrom 123@xxx Tue May 14 09:30:00 +0000 2024\ny\n\n", []string{"x\n", "y\n"}},
		"RFC 5322 date":           {"", from + "x\n\nFrom a Tue, 14 May 2024 09:30:00 +0000\ny\n\n", []string{"x\n", "y\n"}},
		"no dates":                {"", "From a\nx\nFrom prose\n\nFrom b\ny\n\n", []string{"x\nFrom prose\n", "y\n"}},
		"auto unquotes":           {"", from + "A: 1\n\n>From a\n>>From b\n > From\n\n", []string{"A: 1\n\nFrom a\n>From b\n > From\n"}},
		"mboxrd":                  {mailbox.MboxRD, from + "A: 1\n\n>From a\n>>From b\n\nFrom x\ny\n", []string{"A: 1\n\nFrom a\n>From b\n", "y"}},
		"mboxo":                   {mailbox.MboxO, from + "A: 1\n\n>From a\n>>From b\n\nFrom x\ny\n", []string{"A: 1\n\nFrom a\n>>From b\n", "y"}},
		"mboxcl":                  {mailbox.MboxCL, from + "Content-Length: 8\n\n>From a\n\n" + from + "x\n\n", []string{"Content-Length: 8\n\nFrom a\n", "x\n"}},
		"mboxcl2":                 {mailbox.MboxCL2, from + fmt.Sprintf("Content-Length: %d\n\n>From a\n", 8+len(from)) + from + "\n" + from + "x\n\n", []string{fmt.Sprintf("Content-Length: %d\n\n>From a\n", 8+len(from)) + from, "x\n"}},
		"mboxcl2, last":           {mailbox.MboxCL2, from + "Content-Length: 2\n\nx\n", []string{"Content-Length: 2\n\nx\n"}},
		"mboxcl2, wrong length":   {mailbox.MboxCL2, from + "Content-Length: 3\n\n>From x\n\n" + from + "y\n\n", []string{"Content-Length: 3\n\n>From x\n", "y\n"}},
		"mboxcl2, length too big": {mailbox.MboxCL2, from + "Content-Length: 9223372036854775807\n\nx\n\n", []string{"Content-Length: 9223372036854775807\n\nx\n"}},
		"auto finds mboxcl2":      {"", from + "Content-Length: 15\n\nFrom x\n>From y\n\n" + from + "z\n\n", []string{"Content-Length: 15\n\nFrom x\n>From y\n", "z\n"}},
		// Content-Length is the sender's word: it may not swallow the next message.
		"auto is not fooled": {"", from + fmt.Sprintf("Content-Length: %d\n\nx\n\n", 2+len(from)+3) + from + "y\n\n", []string{fmt.Sprintf("Content-Length: %d\n\nx\n", 2+len(from)+3), "y\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "x.mbox")
			write(t, file, tt.in)
			names, messages, problems := readAll(t, mailbox.Options{Mbox: tt.variant}, file)
			var got []string
			for _, m := range messages {
				got = append(got, string(m))
			}
			if d := cmp.Diff(tt.want, got); d != "" || len(problems) > 0 {
				t.Errorf("%v\n-want +got:\n%s", problems, d)
			}
			if len(names) > 0 && names[0] != file+"#1" {
				t.Errorf("first name is %s", names[0])
			}
		})
	}
}

func TestMboxSizesAddUp(t *testing.T) {
	dir := t.TempDir()
	text := "\n" + from + "x\n\n" + from + strings.Repeat("y", 100_000) + "\n\n" + from + "z"
	write(t, filepath.Join(dir, "a.mbox"), text)
	write(t, filepath.Join(dir, "b.eml"), "x")
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write([]byte(text))
	z.Close()
	write(t, filepath.Join(dir, "c.mbox.gz"), packed.String())
	totals, err := mailbox.Scan([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	var sum int64
	for item, err := range mailbox.Open([]string{dir}, mailbox.Options{}) {
		if err != nil {
			t.Fatal(err)
		}
		sum += item.Size
	}
	if totals.Files != 3 || totals.Bytes != int64(len(text)+1+packed.Len()) || sum > totals.Bytes || sum < totals.Bytes-10 {
		t.Errorf("%+v, items come to %d", totals, sum)
	}
}

func TestMboxItemsAreIndependent(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.mbox")
	write(t, file, from+"x\n\n"+from+"y\n\n")
	var items []mailbox.Item
	for item, err := range mailbox.Open([]string{file}, mailbox.Options{}) {
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, item)
		for _, it := range slices.Backward(items) { // again, and in another order
			if b := readItem(t, it); len(b) != 2 {
				t.Errorf("%s gave %q", it.Name, b)
			}
		}
	}
}

func TestParseMbox(t *testing.T) {
	for _, s := range []string{"", "auto", "mboxo", "MBOXRD", "mboxcl", "mboxcl2"} {
		if _, err := mailbox.ParseMbox(s); err != nil {
			t.Error(err)
		}
	}
	if _, err := mailbox.ParseMbox("mmdf"); err == nil {
		t.Error("mmdf was accepted")
	}
}

// referenceMbox splits a file the plainest way: all of it in memory, line by
// line, with regular expressions.
func referenceMbox(text string, variant mailbox.Mbox) []string {
	date := regexp.MustCompile(`(?i) (mon|tue|wed|thu|fri|sat|sun),?\s+(\d{1,2}\s+)?(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)\s.*\d{1,2}:\d{2}`)
	quoted := regexp.MustCompile(`(?m)^>(>*From )`)
	if variant == mailbox.MboxO {
		quoted = regexp.MustCompile(`(?m)^>(From )`)
	}
	var out []string
	var fromLine string
	var message strings.Builder
	lax, begun, last := false, false, ""
	end := func() {
		if !begun {
			return
		}
		m := message.String()
		if strings.HasSuffix(fromLine, "\r\n") && strings.HasSuffix(m, "\r\n") {
			m = strings.TrimSuffix(m, "\r\n")
		} else {
			m = strings.TrimSuffix(m, "\n")
		}
		out = append(out, quoted.ReplaceAllString(m, "$1"))
		message.Reset()
	}
	for _, line := range strings.SplitAfter(text, "\n") {
		separates := strings.HasPrefix(line, "From ")
		dated := date.MatchString(line[:min(len(line), 1024)])
		switch {
		case !separates:
		case !begun:
			lax = !dated
		case variant == mailbox.MboxO || variant == mailbox.MboxRD:
		case lax:
			separates = last == "\n" || last == "\r\n"
		default:
			separates = dated
		}
		if separates {
			end()
			begun, fromLine = true, line
		} else if begun {
			message.WriteString(line)
		}
		last = line
	}
	end()
	return out
}

func FuzzMboxReader(f *testing.F) {
	f.Add(from+"A: 1\n\n>From x\n>>From y\n\n"+from+"y", 0)
	f.Add("From a\r\nA: 1\r\n\r\nx\r\n\r\nFrom b\r\ny\r\n", 1)
	f.Add(from+"\n"+from+"x\r\nFrom z\n\n", 2)
	f.Fuzz(func(t *testing.T, text string, n int) {
		if !strings.HasPrefix(text, "From ") || strings.Contains(strings.ToLower(text), "content-length") {
			t.Skip("not an mbox, or one whose lengths the reference does not read")
		}
		variant := []mailbox.Mbox{mailbox.MboxAuto, mailbox.MboxO, mailbox.MboxRD}[uint(n)%3]
		messages, err := mailbox.ReadMbox([]byte(text), variant)
		var got []string
		for _, m := range messages {
			got = append(got, string(m))
		}
		if want := referenceMbox(text, variant); err != nil || !slices.Equal(want, got) {
			t.Errorf("%s of %q: %v\n-want +got:\n%s", variant, text, err, cmp.Diff(want, got))
		}
	})
}

func FuzzMboxRoundTrip(f *testing.F) {
	f.Add([]byte("Subject: x\r\n\r\nFrom a\r\n>From b"), []byte("\r"))
	f.Add([]byte(from+">"+from), []byte("From "))
	f.Add([]byte("Content-Length: 7\n\nFrom x\n"), []byte(">>>From"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		want := [][]byte{a, b, a, {}, b}
		var file bytes.Buffer
		for _, m := range want {
			if err := mailbox.WriteMbox(&file, meta(m), bytes.NewReader(m)); err != nil {
				t.Fatal(err)
			}
		}
		for _, variant := range []mailbox.Mbox{mailbox.MboxAuto, mailbox.MboxRD} {
			got, err := mailbox.ReadMbox(file.Bytes(), variant)
			if err != nil || !slices.EqualFunc(want, got, bytes.Equal) {
				t.Errorf("%s: %q came back as %q (%v) from %q", variant, want, got, err, file.Bytes())
			}
		}
	})
}

// With explicit lengths any text is split somehow, and nothing is read twice.
func FuzzMboxContentLength(f *testing.F) {
	f.Add([]byte(from+"Content-Length: 2\n\nx\n\n"+from+"Content-Length: 0\n\n\n"), 0)
	f.Add([]byte(from+"Content-Length: 9\r\n\r\nFrom a\n>\n\n"+from), 1)
	f.Fuzz(func(t *testing.T, text []byte, n int) {
		variant := []mailbox.Mbox{mailbox.MboxAuto, mailbox.MboxCL, mailbox.MboxCL2}[uint(n)%3]
		messages, _ := mailbox.ReadMbox(text, variant)
		sum := 0
		for _, m := range messages {
			sum += len(m) + len("From ")
		}
		if sum > len(text) {
			t.Errorf("%s: %d messages of %d bytes in all come from %d bytes", variant, len(messages), sum, len(text))
		}
	})
}
