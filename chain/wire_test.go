package chain

import (
	"bufio"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"chainmail/archive/record"
)

func read(s string) (reply, error) { return readReply(bufio.NewReader(strings.NewReader(s))) }

func TestReply(t *testing.T) {
	for s, want := range map[string]reply{
		"250 ok\r\n":                       {250, []string{"ok"}},
		"250 ok\n":                         {250, []string{"ok"}},
		"250\r\n":                          {250, []string{""}},
		"250-a\r\n250-  b\r\n250 c \r\n":   {250, []string{"a", "  b", "c "}},
		"554-5.7.1 no\r\n554 never\r\n250": {554, []string{"5.7.1 no", "never"}},
	} {
		if got, err := read(s); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for _, bad := range []string{"", "25", "25\r\n", "abc ok\r\n", "150 ok\r\n", "600 ok\r\n", "250-a\r\n251 b\r\n", "250-a\r\n", "250_a\r\n", "250 " + strings.Repeat("x", 600) + "\r\n"} {
		if got, err := read(bad); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
	if _, err := read(strings.Repeat("250-"+strings.Repeat("x", 500)+"\r\n", 40_000)); !errors.Is(err, errLongReply) {
		t.Errorf("an endless reply: %v", err)
	}
}

func TestReplyRoundTrip(t *testing.T) {
	text := strings.Repeat("0123456789", 201)
	for _, s := range []string{"", "x", text[:500], text[:501], text[:1000], text} {
		r := reply{250, fold(s)}
		got, err := read(string(r.encode()))
		if err != nil || strings.Join(got.lines, "") != s {
			t.Errorf("%d bytes: %v", len(s), err)
		}
	}
}

func TestDurable(t *testing.T) {
	many := record.Ranges{}
	for i := range record.Seq(500) {
		many = append(many, record.Range{First: 10*i + 1, Last: 10*i + 5})
	}
	d := durable{boot: "b007", generation: 812, held: map[record.StoreID]record.Ranges{7: many, 9: record.Of(1, 3), 10: nil}}
	r := d.reply()
	for _, line := range r.lines {
		if len(line) > textPerLine {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
	wire, err := read(string(r.encode()))
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseDurable(wire)
	if err != nil || got.boot != d.boot || got.generation != d.generation || got.held[7].String() != many.String() || got.held[9].String() != "1-3" || len(got.held[10]) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []reply{says(250, "2.0.0 ok"), {250, []string{r.lines[0], "7 1-3"}}, {250, []string{r.lines[0], "0000000000000007 3-1"}}} {
		if got, err := parseDurable(bad); err == nil {
			t.Errorf("%q: %+v", bad.lines, got)
		}
	}
	later := reply{250, []string{r.lines[0] + " load=7", "0000000000000009 1-3 more words"}}
	if got, err := parseDurable(later); err != nil || got.held[9].String() != "1-3" {
		t.Errorf("words of a later version: %+v, %v", got, err)
	}
}

func TestHelloIgnoresUnknownFields(t *testing.T) {
	text, err := os.ReadFile("testdata/hello-later.json")
	if err != nil {
		t.Fatal(err)
	}
	h, err := parseHello(text)
	if err != nil || h.Node != "b" || len(h.Logs) != 1 || h.Logs[0].Held.String() != "1-9,12" || h.Logs[0].Known != 15 || h.Logs[0].Placements[0].Nodes[1] != "b" {
		t.Errorf("%+v, %v", h, err)
	}
	for _, bad := range []string{
		"", "[]", "{}", `{"node":"a"}`, `{"node":"a","boot":"b","generation":0}`, `{"node":"a","boot":"b","generation":1,"wait_ms":-1}`,
		`{"node":"a","boot":"b","generation":1,"logs":[{"store":"x"}]}`,
		`{"node":"a","boot":"b","generation":1,"logs":[{"store":"0000000000000001","held":"5-1"}]}`,
		`{"node":"a","boot":"b","generation":1,"logs":[{"store":"0000000000000001","held":"","placements":[{"from":0,"nodes":["a"]}]}]}`,
	} {
		if h, err := parseHello([]byte(bad)); err == nil {
			t.Errorf("%s: %+v", bad, h)
		}
	}
}

func TestNegotiate(t *testing.T) {
	for words, want := range map[string]int{"1 1": 1, "1 2": 1, "1 9 and more": 1} {
		if got, err := negotiate(words, true); err != nil || got != want {
			t.Errorf("%q: %d, %v", words, got, err)
		}
	}
	for words, want := range map[string]string{
		"2 2": "speaks versions 2 to 2 of the link and this node 1 to 1: update the older",
		"2 1": "for the versions it speaks", "": "for the versions it speaks", "x y": "for the versions it speaks", "0 1": "for the versions it speaks",
	} {
		if _, err := negotiate(words, true); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", words, err)
		}
	}
	if _, err := negotiate("", false); err == nil {
		t.Error("nothing offered")
	}
}

func TestDamagedReply(t *testing.T) {
	in := &incoming{}
	p := record.Position{Store: 7, Seq: 41}
	r := in.refusal(positionError{p, ErrCorrupt})
	if at, ok := r.damaged(); !ok || at != p || r.code != 554 {
		t.Errorf("%v: %v, %v", r, at, ok)
	}
	for _, other := range []error{ErrCorrupt, ErrFull, ErrBusy, errMalformed, errCutOff, errors.New("line\r\nbreak " + strings.Repeat("x", 1000))} {
		r := in.refusal(other)
		if _, ok := r.damaged(); ok || len(r.lines) != 1 || len(r.lines[0]) > textPerLine || strings.ContainsAny(r.lines[0], "\r\n") {
			t.Errorf("%v: %q", other, r.lines)
		}
	}
}

func FuzzReply(f *testing.F) {
	f.Add("250-2.0.0 durable generation=1 boot=x\r\n250 0000000000000007 1-3,5\r\n")
	f.Add("554 5.6.0 0000000000000007:3 corrupt\r\n")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := read(s)
		if err != nil {
			return
		}
		r.damaged()
		d, err := parseDurable(r)
		if err != nil {
			return
		}
		again, err := parseDurable(d.reply())
		if d.boot != "" && (err != nil || again.generation != d.generation) {
			t.Errorf("%+v is %+v, %v", d, again, err)
		}
	})
}

func FuzzHello(f *testing.F) {
	text, _ := os.ReadFile("testdata/hello-later.json")
	f.Add(text)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHello(b)
		if err != nil {
			return
		}
		for _, l := range h.Logs {
			duties(testView(3, "a b c d"), l.Log)
		}
		h.Time = time.Time{}
		if _, err := json.Marshal(h); err != nil {
			t.Errorf("%+v: %v", h, err)
		}
	})
}
