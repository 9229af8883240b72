package route_test

import (
	"bytes"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"chainmail/chain/route"
)

func TestStuffing(t *testing.T) {
	for _, tt := range []struct{ body, wire string }{
		{"", ".\r\n"},
		{"x\r\n", "x\r\n.\r\n"},
		{"x", "x\r\n.\r\n"},
		{".", "..\r\n.\r\n"},
		{".\r\n", "..\r\n.\r\n"},
		{"a.b\r\n..\r\n.c", "a.b\r\n...\r\n..c\r\n.\r\n"},
		{"x\r", "x\r\n.\r\n"},
		{"x\n", "x\n\r\n.\r\n"},
		{"x\n.y\r\n", "x\n.y\r\n.\r\n"}, // not the end for any server
		{"x\r.y\r\n", "x\r.y\r\n.\r\n"},
		// What some servers take for the end of the mail.
		{"x\n.\nMAIL", "x\n..\nMAIL\r\n.\r\n"},
		{"x\n.\r\nMAIL\r\n", "x\n..\r\nMAIL\r\n.\r\n"},
		{"x\r.\r\nMAIL\r\n", "x\r..\r\nMAIL\r\n.\r\n"},
		{"x\r.\rMAIL\r\n", "x\r..\rMAIL\r\n.\r\n"},
		{"x\r\n.\nMAIL\r\n", "x\r\n..\nMAIL\r\n.\r\n"},
		{"x\n.", "x\n..\r\n.\r\n"},
	} {
		for n := 1; n <= 20; n++ {
			if got := route.Stuff([]byte(tt.body), n); string(got) != tt.wire {
				t.Errorf("%q in pieces of %d: %q, want %q", tt.body, n, got, tt.wire)
			}
		}
	}
}

// A strict server gets every body back as it was, but for the final line end
// and doubled dots behind a CR or LF alone; and no server of whatever habits
// finds the end of the mail before it.
func FuzzStuffing(f *testing.F) {
	for _, seed := range []string{"", ".", "\r\n.\r\n", "a\n.\nb", "\r.\r", "..\r\n.x\r", ".\r.\n.\r\n."} {
		f.Add([]byte(seed), 3)
	}
	f.Fuzz(func(t *testing.T, body []byte, n int) {
		wire := route.Stuff(body, max(1, n))
		if !bytes.Equal(wire, route.Stuff(body, len(body)+1)) {
			t.Fatal("it depends on the pieces")
		}
		text, ok := strings.CutSuffix("\r\n"+string(wire), "\r\n.\r\n")
		if !ok {
			t.Fatalf("%q has no end", wire)
		}
		inner := text + "\r\n" // as the mail's last line ends
		for _, before := range []string{"\r\n", "\n", "\r"} {
			for _, after := range []string{"\r\n", "\n", "\r"} {
				if i := strings.Index(inner, before+"."+after); i >= 0 {
					t.Fatalf("%q of %q can be taken for the end", before+"."+after, wire)
				}
			}
		}
		if !sameButDots(inner[2:], body) {
			t.Fatalf("%q became %q", body, inner)
		}
	})
}

// sameButDots compares what was sent with a body: the only additions are dots
// at the beginning of lines, always behind CRLF, and a line end at the end.
func sameButDots(sent string, body []byte) bool {
	i := 0
	for j, c := range body {
		rest := sent[min(i, len(sent)):]
		switch {
		case c != '.' || j > 0 && body[j-1] != '\r' && body[j-1] != '\n':
		case j == 0 || j > 1 && string(body[j-2:j]) == "\r\n", j+1 == len(body), body[j+1] == '\r', body[j+1] == '\n':
			if !strings.HasPrefix(rest, "..") {
				return false
			}
			rest = rest[1:]
			i++
		}
		if rest == "" || rest[0] != c {
			return false
		}
		i++
	}
	switch rest := sent[i:]; {
	case len(body) == 0, bytes.HasSuffix(body, []byte("\r\n")):
		return rest == ""
	case bytes.HasSuffix(body, []byte("\r")):
		return rest == "\n"
	default:
		return rest == "\r\n"
	}
}

func TestTraits(t *testing.T) {
	long := strings.Repeat("x", 998)
	for _, tt := range []struct {
		body             string
		eightBit, binary bool
	}{
		{"", false, false},
		{"plain\r\ntext\r\n", false, false},
		{"no end", false, false},
		{"d\xc3\xb6s\r\n", true, false},
		{"a\nb\r\n", false, true},
		{"a\rb\r\n", false, true},
		{"a\r\r\n", false, true},
		{"a\r", false, true},
		{"\x00", false, true},
		{"\r\xff", true, true},
		{long + "\r\n" + long + "\r\n", false, false},
		{long + "x\r\n", false, true},
		{long + "x", false, false}, // a byte is lenient here
	} {
		for n := 1; n <= len(tt.body)+1; n += 1 + len(tt.body)/20 {
			eightBit, binary := route.Traits([]byte(tt.body), n)
			if eightBit != tt.eightBit || binary != tt.binary {
				t.Errorf("%.20q: %v %v, want %v %v", tt.body, eightBit, binary, tt.eightBit, tt.binary)
			}
		}
	}
}

func TestReplies(t *testing.T) {
	for _, tt := range []struct{ wire, want string }{
		{"250 ok\r\n", "250 ok"},
		{"250\r\n", "250"},
		{"250 \r\n", "250"},
		{"250-a\r\n250-b\r\n250 c\r\n", "250 a b c"},
		{"250-a\r\n250\r\n", "250 a"},
		{"421 bare LF\n", "421 bare LF"},
		{"550 \x1b[2Jboo\a\xff\r\n", "550 ?[2Jboo??"},
		{"550 " + strings.Repeat("ö", 500) + "\r\n", "550 " + strings.Repeat("ö", 250) + "…"},
	} {
		code, got, err := route.ReadReply(strings.NewReader(tt.wire + "rest"))
		if err != nil || got != tt.want || strconv.Itoa(code) != tt.want[:3] {
			t.Errorf("%q: %d %q %v, want %q", tt.wire, code, got, err, tt.want)
		}
	}
	for _, wire := range []string{
		"", "250 no end", "\r\n", "25\r\n", "hello\r\n", "150 x\r\n", "650 x\r\n", "25x y\r\n", "250_x\r\n", "2500\r\n",
		"250-a\r\n251 b\r\n", "250-a\r\n\r\n", "250-a\r\n", strings.Repeat("x", 5000) + "\r\n", strings.Repeat("250-x\r\n", 2000) + "250 x\r\n",
	} {
		if code, got, err := route.ReadReply(strings.NewReader(wire)); err == nil {
			t.Errorf("%.40q: taken as %d %q", wire, code, got)
		}
	}
}

func FuzzReplies(f *testing.F) {
	for _, seed := range []string{"250 ok\r\n", "250-a\r\n250 b\r\n", "250-a\r\n550 b\r\n", "\x00\r\n", "421\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		code, text, err := route.ReadReply(bytes.NewReader(wire))
		if err != nil {
			return
		}
		switch {
		case code < 200 || code > 599, !bytes.HasPrefix(wire, []byte(strconv.Itoa(code))):
			t.Errorf("%q: code %d", wire, code)
		case !utf8.ValidString(text), strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }), len(text) > 600:
			t.Errorf("%q: text %q", wire, text)
		case !bytes.Contains(wire, []byte("\n")):
			t.Errorf("%q: a reply without end", wire)
		}
		if _, _, err := route.ReadReply(io.MultiReader(bytes.NewReader(wire[:len(wire)/2]), bytes.NewReader(wire[len(wire)/2:]))); err != nil {
			t.Errorf("%q: in two pieces: %v", wire, err)
		}
	})
}

func TestBackoff(t *testing.T) {
	for n, want := range []time.Duration{0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300} {
		if n == 0 {
			continue
		}
		want *= time.Second
		seen := map[time.Duration]bool{}
		for range 100 {
			got := route.Backoff(n)
			if seen[got] = true; got > want || got < want*3/4 {
				t.Fatalf("after %d failures %v, want %v", n, got, want)
			}
		}
		if len(seen) < 50 {
			t.Errorf("after %d failures only %d different delays", n, len(seen))
		}
	}
	if route.Backoff(1<<40) > 5*time.Minute {
		t.Error("the delay has no bound")
	}
}
