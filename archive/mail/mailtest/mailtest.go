// Package mailtest gives tests real mail, and mail that breaks the rules.
package mailtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Message is one message and where it is from.
type Message struct {
	Name  string
	Bytes []byte
}

// corpus is a set of real messages that comes with something a developer has.
type corpus struct {
	name     string
	required bool // make test installs it
	find     []string
	files    []string // patterns below what find prints
	min      int
}

var corpora = []corpus{
	{
		name: "enmime's test data", required: true, min: 100,
		find:  []string{"go", "list", "-m", "-f", "{{.Dir}}", "github.com/jhillyerd/enmime/v2"},
		files: []string{"testdata/*/*", "dsn/testdata/*"},
	},
	{
		name: "Python's test_email data (Debian package libpython3-testsuite)", required: true, min: 40,
		find:  []string{"python3", "-c", "import os, test.test_email as m; print(os.path.dirname(m.__file__))"},
		files: []string{"data/*.txt"},
	},
	{
		name:  "SpamAssassin's samples (Debian package spamassassin)",
		find:  []string{"echo", "/usr/share/doc/spamassassin/examples"},
		files: []string{"sample-*.txt"}, min: 1,
	},
}

// RequireVariable is the environment variable that makes a missing corpus an
// error instead of a reason to skip; make test sets it to 1.
const RequireVariable = "TEST_REQUIRE_CORPORA"

// EachCorpus runs f, as a subtest, on every corpus that the machine has. The
// messages may be larger than a few kilobytes and hold any bytes.
func EachCorpus(t *testing.T, f func(t *testing.T, messages []Message)) {
	for _, c := range corpora {
		t.Run(strings.Fields(c.name)[0], func(t *testing.T) {
			messages, problem := c.read()
			switch {
			case problem == "":
				f(t, messages)
			case c.required && os.Getenv(RequireVariable) == "1":
				t.Fatalf("%s: %s; install it, or unset %s", c.name, problem, RequireVariable)
			default:
				t.Skipf("%s: %s", c.name, problem)
			}
		})
	}
}

// read returns the messages, or why there are none.
func (c corpus) read() ([]Message, string) {
	out, err := exec.Command(c.find[0], c.find[1:]...).Output()
	dir := strings.TrimSpace(string(out))
	if err != nil || dir == "" {
		return nil, "not found on this machine"
	}
	var messages []Message
	for _, pattern := range c.files {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, err.Error()
		}
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil {
				return nil, err.Error()
			}
			rel, _ := filepath.Rel(dir, name)
			messages = append(messages, Message{rel, b})
		}
	}
	if len(messages) < c.min {
		return nil, "incomplete in " + dir
	}
	return messages, ""
}

// Odd returns messages that software has been seen to change: each must come
// back as it went in.
func Odd() []Message {
	long := strings.Repeat("0123456789", 10_000)
	var many strings.Builder
	many.WriteString("From: a@example.com\r\nTo: ")
	for range 5000 {
		many.WriteString("somebody@example.com,\r\n ")
	}
	many.WriteString("b@example.com\r\n\r\nbody\r\n")
	var out []Message
	for _, m := range []struct{ name, text string }{
		{"empty", ""},
		{"one LF", "\n"},
		{"one CRLF", "\r\n"},
		{"one CR", "\r"},
		{"empty body", "Subject: x\r\n\r\n"},
		{"header only", "Subject: x\r\n"},
		{"header without final newline", "Subject: x"},
		{"no header", "\r\nbody\r\n"},
		{"no fields", "just some words\r\n"},
		{"bare LF", "Subject: x\n\nbody\n"},
		{"mixed line ends", "Subject: x\r\nX: y\n\r\na\nb\r\nc\rd\r\n"},
		{"CR CR LF", "Subject: x\r\n\r\na\r\r\nb\r\r\n"},
		{"ends with CR", "Subject: x\r\n\r\nbody\r"},
		{"no final newline", "Subject: x\r\n\r\nbody"},
		{"many final newlines", "Subject: x\r\n\r\nbody\r\n\r\n\n\n"},
		{"NUL", "Subject: x\r\n\r\na\x00b\x00\r\n"},
		{"8-bit", "Subject: caf\xe9\r\n\r\n\xff\xfe\x80 \u20ac\r\n"},
		{"long line", "Subject: x\r\n\r\n" + long + "\r\n"},
		{"long header line", "Subject: " + long + "\r\n\r\nbody\r\n"},
		{"leading dots", "Subject: x\r\n\r\n.\r\n..\r\n.a\r\n...\r\n.\n"},
		{"ends with a dot", "Subject: x\r\n\r\n."},
		{"From lines", "Subject: x\r\n\r\nFrom here on\r\n>From there\r\n>>From afar\r\n From\r\n>>>Fromage\r\nFrom"},
		{"From line first", "From a@example.com Thu Nov 23 14:34:00 2023\r\nSubject: x\r\n\r\nbody\r\n"},
		{"an mbox inside", "Subject: x\n\nFrom a@example.com Thu Nov 23 14:34:00 2023\nSubject: y\n\nbody\n\nFrom b@example.com Thu Nov 23 14:34:00 2023\n"},
		{"only a quoted From", ">From "},
		{"lying Content-Length", "Subject: x\nContent-Length: 3\n\nFrom a long body\n"},
		{"huge Content-Length", "Subject: x\nContent-Length: 99999999999999999999\n\nbody\n"},
		{"5000 recipients", many.String()},
	} {
		out = append(out, Message{m.name, []byte(m.text)})
	}
	return out
}
