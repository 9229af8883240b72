package mail_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"chainmail/archive/mail"

	"github.com/google/go-cmp/cmp"
)

func header(t testing.TB, s string) []mail.Field {
	t.Helper()
	fields, err := mail.ParseHeader(strings.NewReader(s))
	if err != nil {
		t.Fatal(err)
	}
	return fields
}

func TestParseHeaderLines(t *testing.T) {
	type nv struct{ Name, Value string }
	for name, tt := range map[string]struct {
		in   string
		want []nv
	}{
		"CRLF":                  {"A: 1\r\nB: 2\r\n\r\nC: 3\r\n", []nv{{"A", "1"}, {"B", "2"}}},
		"bare LF":               {"A: 1\nB: 2\n\nC: 3\n", []nv{{"A", "1"}, {"B", "2"}}},
		"mixed":                 {"A: 1\nB: 2\r\nC: 3\n\r\nD: 4\r\n", []nv{{"A", "1"}, {"B", "2"}, {"C", "3"}}},
		"no body":               {"A: 1\r\nB: 2", []nv{{"A", "1"}, {"B", "2"}}},
		"folded":                {"A: one\r\n two\r\n\tthree\r\nB: 2\r\n\r\n", []nv{{"A", "one two\tthree"}, {"B", "2"}}},
		"folded at once":        {"A:\n one\n\n", []nv{{"A", "one"}}},
		"no colon":              {"A: 1\nthis is no field\n folded on\nB: 2\n\n", []nv{{"A", "1"}, {"B", "2"}}},
		"From_ line":            {"From a@example.com Thu Nov 23 14:34:00 2023\nA: 1\n\n", []nv{{"A", "1"}}},
		"space before colon":    {"A : 1\nB\t: 2\n\n", []nv{{"A", "1"}, {"B", "2"}}},
		"space in name":         {"Note that: x\nA: 1\n\n", []nv{{"A", "1"}}},
		"8-bit name":            {"Subj\xe9ct: x\nA: 1\n\n", []nv{{"A", "1"}}},
		"empty name":            {": x\nA: 1\n\n", []nv{{"A", "1"}}},
		"empty value":           {"A:\nB: \n\n", []nv{{"A", ""}, {"B", ""}}},
		"continuation at first": {" x: 1\nA: 1\n\n", []nv{{"A", "1"}}},
		"only a body":           {"\r\nA: 1\r\n", nil},
		"empty":                 {"", nil},
		"bare CR":               {"A: 1\rB: 2\n\n", []nv{{"A", "1\rB: 2"}}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []nv
			for _, f := range header(t, tt.in) {
				got = append(got, nv{f.Name, f.Value})
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestFieldRawIsExact(t *testing.T) {
	f := header(t, "a: 1\r\nSubject : =?utf-8?q?a?=\r\n \tb  \r\n\r\n")[1]
	if want := "Subject : =?utf-8?q?a?=\r\n \tb  "; f.Raw != want {
		t.Errorf("Raw %q, want %q", f.Raw, want)
	}
}

func TestHeaderText(t *testing.T) {
	for name, tt := range map[string]struct{ in, want string }{
		"plain":                     {"Subject: hello\n", "hello"},
		"UTF-8 raw":                 {"Subject: Gr\u00fc\u00dfe\n", "Grüße"},
		"Latin 1 raw":               {"Subject: Gr\xfc\xdfe\n", "Grüße"},
		"windows-1252 raw":          {"Subject: 5 \x80 \x96 ok\n", "5 € – ok"},
		"declared koi8-r raw":       {"Subject: \xf0\xd2\xc9\xd7\xc5\xd4\nContent-Type: text/plain; charset=koi8-r\n", "Привет"},
		"declared utf-8, but not":   {"Subject: caf\xe9\nContent-Type: text/plain; charset=utf-8\n", "café"},
		"declared Latin 1 raw":      {"Content-Type: text/plain; charset=\"ISO-8859-1\"\nSubject: \x93x\x94\n", "“x”"},
		"declared nonsense raw":     {"Content-Type: text/plain; charset=klingon\nSubject: \xe9\n", "é"},
		"Q":                         {"Subject: =?iso-8859-1?Q?Gr=FC=DFe_an_alle?=\n", "Grüße an alle"},
		"B":                         {"Subject: =?UTF-8?B?R3LDvMOfZQ==?=\n", "Grüße"},
		"B unpadded":                {"Subject: =?UTF-8?B?R3LDvMOfZQ?=\n", "Grüße"},
		"koi8-r":                    {"Subject: =?koi8-r?B?8NLJ18XU?=\n", "Привет"},
		"windows-1251":              {"Subject: =?windows-1251?Q?=CF=F0=E8=E2=E5=F2?=\n", "Привет"},
		"gb2312":                    {"Subject: =?gb2312?B?xOO6ww==?=\n", "你好"},
		"iso-2022-jp":               {"Subject: =?iso-2022-jp?B?GyRCJDMkcyRLJEEkTxsoQg==?=\n", "こんにちは"},
		"adjacent":                  {"Subject: =?utf-8?q?a?=\r\n =?utf-8?q?b?= c\n", "ab c"},
		"adjacent, other charset":   {"Subject: =?utf-8?q?=C3=A9?= =?koi8-r?q?=C1?=\n", "éа"},
		"character split in words":  {"Subject: =?utf-8?q?=C3?= =?UTF-8?q?=A9?=\n", "é"},
		"character split in base64": {"Subject: =?utf-8?b?4oI=?=\n =?utf-8?b?rA==?=\n", "€"},
		"text between":              {"Subject: a =?utf-8?q?b?= c =?utf-8?q?d?= e\n", "a b c d e"},
		"glued to text":             {"Subject: [=?utf-8?q?b?=]c\n", "[b]c"},
		"with language":             {"Subject: =?utf-8*de?q?b?=\n", "b"},
		"spaces within":             {"Subject: =?utf-8?q?a b?=\n", "a b"},
		"unknown charset":           {"Subject: =?klingon?q?a?= =?klingon?q?b?=\n", "=?klingon?q?a?= =?klingon?q?b?="},
		"unknown encoding":          {"Subject: =?utf-8?x?a?=\n", "=?utf-8?x?a?="},
		"not base64":                {"Subject: =?utf-8?b?a%?= x\n", "=?utf-8?b?a%?= x"},
		"unfinished":                {"Subject: =?utf-8?q?abc\n", "=?utf-8?q?abc"},
		"stray equals":              {"Subject: =?utf-8?q?a=b=?=\n", "a=b="},
		"invalid bytes":             {"Subject: =?utf-8?q?a=FFb?=\n", "a\uFFFDb"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := mail.Get(header(t, tt.in+"\n"), "subject"); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestHeaderIsBounded(t *testing.T) {
	long := "A: 1\nTo: " + strings.Repeat("somebody@example.com, ", 60_000)
	fields := header(t, long)
	if len(fields) != 1 || fields[0].Name != "A" {
		t.Errorf("a field that does not end within 1 MiB must be left out whole: %d fields", len(fields))
	}
	many := header(t, strings.Repeat("To: somebody@example.com\n", 100_000))
	if n := len(many); n < 40_000 || n > 42_000 || many[n-1].Value != "somebody@example.com" {
		t.Errorf("%d fields within 1 MiB; the last: %+v", n, many[n-1])
	}
}

func TestParseHeaderReadError(t *testing.T) {
	broken := errors.New("disk on fire")
	if _, err := mail.ParseHeader(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func TestAddresses(t *testing.T) {
	for name, tt := range map[string]struct {
		in   string
		want []string
	}{
		"bare":               {"a@example.com", []string{"a@example.com"}},
		"list":               {"A <a@example.com>, b@example.com", []string{"a@example.com", "b@example.com"}},
		"semicolons":         {"a@example.com; B <b@example.com>", []string{"a@example.com", "b@example.com"}},
		"quoted name":        {`"Last, First <x@y>" <a@example.com>, "B \"q\"" <b@example.com>`, []string{"a@example.com", "b@example.com"}},
		"address as name":    {`"x@example.net" <a@example.com>`, []string{"a@example.com"}},
		"comments":           {"a@example.com (A (really), x@y.z), (c) b@example.com (d)", []string{"a@example.com", "b@example.com"}},
		"comment escapes":    {`a@example.com (\) x@y.z)`, []string{"a@example.com"}},
		"group":              {"Friends: a@example.com, B <b@example.com>;, c@example.com", []string{"a@example.com", "b@example.com", "c@example.com"}},
		"empty group":        {"undisclosed-recipients:;", nil},
		"route":              {"<@relay.example,@b:a@example.com>", []string{"a@example.com"}},
		"domain literal":     {"a@[192.0.2.1], <b@[IPv6:2001:db8::1]>", []string{"a@[192.0.2.1]", "b@[IPv6:2001:db8::1]"}},
		"quoted local part":  {`"john doe"@example.com`, []string{`"john doe"@example.com`}},
		"encoded name":       {"=?utf-8?q?A=2C_x=40y=2Ez?= <a@example.com>", []string{"a@example.com"}},
		"wholly encoded":     {"=?utf-8?q?A_=3Ca=40example=2Ecom=3E?=", []string{"a@example.com"}},
		"UTF-8":              {"Jörg <jörg@müller.example>", []string{"jörg@müller.example"}},
		"Latin 1 name":       {"J\xf6rg <a@example.com>", []string{"a@example.com"}},
		"folded":             {"a@example.com,\r\n\tb@example.com", []string{"a@example.com", "b@example.com"}},
		"no separator":       {"a@example.com b@example.com", []string{"a@example.com", "b@example.com"}},
		"unquoted name":      {"Last, First <a@example.com>", []string{"a@example.com"}},
		"open quote":         {`"A <a@example.com>, b@example.com`, []string{"a@example.com", "b@example.com"}},
		"open angle":         {"A <a@example.com, b@example.com", []string{"a@example.com", "b@example.com"}},
		"open comment":       {"a@example.com (A, b@example.com", []string{"a@example.com", "b@example.com"}},
		"double angle":       {"<<a@example.com>>", []string{"a@example.com"}},
		"single quotes":      {"'a@example.com'", []string{"a@example.com"}},
		"mailto":             {"<mailto:a@example.com>, mailto:b@example.com", []string{"a@example.com", "b@example.com"}},
		"trailing dot":       {"a@example.com.", []string{"a@example.com."}},
		"no domain":          {"root, a@, @example.com, a b", nil},
		"empty":              {" , ;, <>", nil},
		"twice":              {"a@example.com, A@EXAMPLE.com", []string{"a@example.com"}},
		"backslash in quote": {`"a\\" <a@example.com>`, []string{"a@example.com"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := mail.Addresses(header(t, "X: z@example.com\nTo: "+tt.in+"\n\n"), "to")
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestEnvelopeFrom(t *testing.T) {
	for name, tt := range map[string]struct {
		in, from string
		to       []string
	}{
		"From":        {"From: a@example.com\nTo: b@example.com\n", "a@example.com", []string{"b@example.com"}},
		"Sender":      {"From: a@example.com\nSender: s@example.com\n", "s@example.com", nil},
		"Return-Path": {"From: a@example.com\nSender: s@example.com\nReturn-Path: <r@example.com>\n", "r@example.com", nil},
		"bounce":      {"Return-Path: <>\nFrom: MAILER-DAEMON@example.com\nTo: b@example.com\n", "", []string{"b@example.com"}},
		"unusable":    {"Return-Path: x\nFrom: a@example.com\n", "a@example.com", nil},
		"every recipient": {
			"To: a@e.x\nCc: b@e.x\nBcc: c@e.x\nResent-To: d@e.x\nResent-Cc: e@e.x\nResent-Bcc: f@e.x\nDelivered-To: g@e.x\nX-Original-To: h@e.x\nEnvelope-To: i@e.x, a@e.x\nReply-To: no@e.x\n",
			"",
			[]string{"a@e.x", "b@e.x", "c@e.x", "d@e.x", "e@e.x", "f@e.x", "g@e.x", "h@e.x", "i@e.x"},
		},
		"nothing": {"", "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			from, to := mail.EnvelopeFrom(header(t, tt.in+"\n"))
			if d := cmp.Diff(tt.to, to); from != tt.from || d != "" {
				t.Errorf("from %q, want %q; to -want +got:\n%s", from, tt.from, d)
			}
		})
	}
}

// A field made of openings that never close must not cost the square of its
// length; with that, this test would not end.
func TestHostileHeadersAreLinear(t *testing.T) {
	for _, unit := range []string{`"\`, "(", "<", "[", "(\\", `<"`, "=?a?q?", "=?", "@:", "a@:", "\"a@b\":", "=?utf-8?q?a?= ", "=?x?q?a?= ", "A:\n", "a@b,"} {
		t.Run(unit, func(t *testing.T) {
			fields := header(t, "To: "+strings.Repeat(unit, 1_000_000/len(unit))+"\n\n")
			mail.Addresses(fields, "To")
		})
	}
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte("From: \"A, B\" <a@example.com> (c)\r\nSubject: =?utf-8?q?a?=\r\n =?koi8-r?b?8NLJ?=\r\nTo: x:a@b,c@[1.2.3.4];\r\n\r\nbody"))
	f.Add([]byte("Content-Type: text/plain; charset=iso-2022-jp\nTo: \x1b$B$3\x1b(B <a@example.com>\n\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		fields, err := mail.ParseHeader(bytes.NewReader(in))
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range fields {
			if x.Name == "" || !utf8.ValidString(x.Value) || strings.Contains(x.Value, "\n") && !strings.Contains(x.Raw, "=?") {
				t.Errorf("bad field %+q", x)
			}
			if !bytes.Contains(in, []byte(x.Raw)) {
				t.Errorf("raw field %q is not in the message", x.Raw)
			}
		}
		from, to := mail.EnvelopeFrom(fields)
		for _, a := range append(to, from) {
			if a != "" && (!strings.Contains(a, "@") || strings.ContainsAny(a, "\r\n") || !utf8.ValidString(a)) {
				t.Errorf("bad address %q", a)
			}
		}
	})
}
