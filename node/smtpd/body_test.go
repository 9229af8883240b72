package smtpd_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// bodies are messages as they must be archived, and the bytes of DATA that
// carry them.
var bodies = []struct{ name, wire, body string }{
	{"plain", "Subject: x\r\n\r\nhello\r\n.\r\n", "Subject: x\r\n\r\nhello\r\n"},
	{"empty", ".\r\n", ""},
	{"empty line", "\r\n.\r\n", "\r\n"},
	{"stuffed dot", "..\r\n.\r\n", ".\r\n"},
	{"stuffed dots", "...\r\n..a\r\n.\r\n", "..\r\n.a\r\n"},
	{"dot unstuffed", ".a\r\n.\r\n", "a\r\n"},
	{"bare LF", "a\nb\n\nc\r\n.\r\n", "a\nb\n\nc\r\n"},
	{"bare CR", "a\rb\r\rc\r\n.\r\n", "a\rb\r\rc\r\n"},
	{"CR CR LF . CR LF ends", "a\r\r\n.\r\n", "a\r\r\n"},
	{"CR CR LF is a line end", "x\r\r\n..y\r\n.\r\n", "x\r\r\n.y\r\n"},
	{"dot CR in a line", "a\r\n.\rb\r\n.\r\n", "a\r\n\rb\r\n"},
	{"dot CR CR LF", "a\r\n.\r\r\n.\r\n", "a\r\n\r\r\n"},
	{"NUL", "a\x00b\r\n\x00\r\n.\r\n", "a\x00b\r\n\x00\r\n"},
	{"8 bit", "\xff\xfe\x80\r\n.\r\n", "\xff\xfe\x80\r\n"},
	{"long line", strings.Repeat("x", 100_000) + "\r\n.\r\n", strings.Repeat("x", 100_000) + "\r\n"},
	{"CRs only", strings.Repeat("\r", 70_000) + "\r\n.\r\n", strings.Repeat("\r", 70_000) + "\r\n"},
	{"many dots", strings.Repeat("..\r\n", 40_000) + ".\r\n", strings.Repeat(".\r\n", 40_000)},
	// Sequences that some server takes for the end of DATA. What follows must
	// stay content.
	{"LF.LF", "a\n.\nMAIL FROM:<evil@x>\r\n.\r\n", "a\n.\nMAIL FROM:<evil@x>\r\n"},
	{"LF.CRLF", "a\n.\r\nMAIL FROM:<evil@x>\r\n.\r\n", "a\n.\r\nMAIL FROM:<evil@x>\r\n"},
	{"CRLF.LF", "a\r\n.\nMAIL FROM:<evil@x>\r\n.\r\n", "a\r\n\nMAIL FROM:<evil@x>\r\n"},
	{"CRLF.CR", "a\r\n.\rMAIL FROM:<evil@x>\r\n.\r\n", "a\r\n\rMAIL FROM:<evil@x>\r\n"},
	{"CR.CR", "a\r.\rMAIL FROM:<evil@x>\r\n.\r\n", "a\r.\rMAIL FROM:<evil@x>\r\n"},
	{"CR.CRLF", "a\r.\r\nMAIL FROM:<evil@x>\r\n.\r\n", "a\r.\r\nMAIL FROM:<evil@x>\r\n"},
	{"LF.CR", "a\n.\rMAIL FROM:<evil@x>\r\n.\r\n", "a\n.\rMAIL FROM:<evil@x>\r\n"},
	{"CR.LF", "a\r.\nMAIL FROM:<evil@x>\r\n.\r\n", "a\r.\nMAIL FROM:<evil@x>\r\n"},
	{"LF CR . CRLF", "a\n\r.\r\nMAIL FROM:<evil@x>\r\n.\r\n", "a\n\r.\r\nMAIL FROM:<evil@x>\r\n"},
	{"CRLF NUL . CRLF", "a\r\n\x00.\r\nMAIL FROM:<evil@x>\r\n.\r\n", "a\r\n\x00.\r\nMAIL FROM:<evil@x>\r\n"},
	{"first line LF", ".\nMAIL FROM:<evil@x>\r\n.\r\n", "\nMAIL FROM:<evil@x>\r\n"},
}

func TestDataKeepsEveryByte(t *testing.T) {
	for _, tt := range bodies {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, nil)
			c := s.hello()
			c.mail(tt.wire)
			c.cmd("NOOP", "250")
			if got := s.bodies(); !slices.Equal(got, []string{tt.body}) {
				t.Errorf("archived %.200q, want %.200q", got, tt.body)
			}
		})
	}
}

// The same in pieces of few bytes, so that every place is once between two
// reads, with the next mail behind it.
func TestDataInPieces(t *testing.T) {
	for _, tt := range bodies {
		if len(tt.wire) > 1000 {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, nil)
			c := s.hello()
			c.envelope()
			c.cmd("DATA", "354")
			for i := range len(tt.wire) {
				c.send(tt.wire[i : i+1])
			}
			c.want("250")
			c.mail(tt.wire)
			c.cmd("QUIT", "221")
			if got := s.bodies(); !slices.Equal(got, []string{tt.body, tt.body}) {
				t.Errorf("archived %.200q, want %.200q twice", got, tt.body)
			}
		})
	}
}

func TestBdatKeepsEveryByte(t *testing.T) {
	for _, tt := range bodies {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, nil)
			c := s.hello()
			half := len(tt.body) / 2
			c.send(fmt.Sprintf("MAIL FROM:<a@b.c> BODY=BINARYMIME\r\nRCPT TO:<d@e.f>\r\nBDAT %d\r\n%sBDAT %d LAST\r\n%sNOOP\r\n",
				half, tt.body[:half], len(tt.body)-half, tt.body[half:]))
			for range 5 {
				c.want("250")
			}
			if got := s.bodies(); !slices.Equal(got, []string{tt.body}) {
				t.Errorf("archived %.200q, want %.200q", got, tt.body)
			}
		})
	}
}

// Wherever the end of a buffer falls in the end of a body, nothing changes.
func TestDataAcrossBuffers(t *testing.T) {
	tails := []string{"\r\n.\r\n", "\r\n..\r\n.\r\n", "\r\n.\r.\r\n.\r\n", "\r\r\n.\r\n", "\r\n.\n\r\n.\r\n"}
	s := start(t, nil)
	c := s.hello()
	var want []string
	for _, buffer := range []int{4 << 10, 64 << 10, 128 << 10} {
		for _, tail := range tails {
			for shift := -len(tail); shift <= 1; shift++ {
				wire := strings.Repeat("x", buffer+shift) + tail
				body, rest, _ := readBody([]byte(wire))
				if len(rest) > 0 {
					t.Fatal("the body ends early")
				}
				c.mail(wire)
				want = append(want, string(body))
			}
		}
	}
	for i, got := range s.bodies() {
		if got != want[i] {
			t.Errorf("mail %d: archived %d bytes that end in %q, want %d and %q", i, len(got), got[len(got)-8:], len(want[i]), want[i][len(want[i])-8:])
		}
	}
}
