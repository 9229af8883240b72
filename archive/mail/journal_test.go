package mail_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"chainmail/archive/mail"
	"chainmail/archive/record"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files of the journal reports")

func parseJournal(t testing.TB, report []byte, chunk int) (*record.Journal, error) {
	t.Helper()
	p := mail.NewJournalParser()
	for b := report; len(b) > 0; {
		n := min(chunk, len(b))
		if got, err := p.Write(b[:n]); got != n || err != nil {
			t.Fatalf("Write of %d bytes: %d, %v; it must never fail", n, got, err)
		}
		b = b[n:]
	}
	return p.Close()
}

func fixtures(t testing.TB) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob("testdata/journal/*.eml")
	if err != nil || len(names) == 0 {
		t.Fatalf("no fixtures: %v", err)
	}
	out := map[string][]byte{}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		out[strings.TrimSuffix(filepath.Base(name), ".eml")] = b
	}
	delete(out, "inner")
	return out
}

// golden is what a fixture's .json file holds.
type golden struct {
	Journal *record.Journal `json:",omitempty"`
	Error   string          `json:",omitempty"`
}

func TestJournalReports(t *testing.T) {
	for name, report := range fixtures(t) {
		t.Run(name, func(t *testing.T) {
			j, err := parseJournal(t, report, len(report))
			got := golden{Journal: j}
			if err != nil {
				got.Error = err.Error()
			}
			file := filepath.Join("testdata/journal", name+".json")
			if *update {
				b, _ := json.MarshalIndent(got, "", "  ")
				if err := os.WriteFile(file, append(b, '\n'), 0o666); err != nil {
					t.Fatal(err)
				}
			}
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var want golden
			if err := json.Unmarshal(b, &want); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// Fixtures say by their name what must become of them, whatever the golden
// files say.
func TestJournalOutcome(t *testing.T) {
	inner, err := os.ReadFile("testdata/journal/inner.eml")
	if err != nil {
		t.Fatal(err)
	}
	for name, report := range fixtures(t) {
		t.Run(name, func(t *testing.T) {
			j, err := parseJournal(t, report, 512)
			var want error
			kind, _, _ := strings.Cut(name, "-")
			switch kind {
			case "none":
				want = mail.ErrNotJournal
			case "bad":
				want = mail.ErrBadJournal
			case "protected":
				want = mail.ErrProtected
			}
			if !errors.Is(err, want) {
				t.Fatalf("error %v, want %v", err, want)
			}
			if kind == "protected" && (j == nil || !j.Inner.IsZero() || len(j.Recipients) == 0) {
				t.Fatalf("a protected report must still tell its recipients, and no inner hash: %+v", j)
			}
			if want != nil {
				return
			}
			inner := inner
			if name == "bare-lf" {
				inner = bytes.ReplaceAll(inner, []byte("\r\n"), []byte("\n"))
			}
			if j.Inner != sha256.Sum256(inner) || j.InnerSize != int64(len(inner)) {
				t.Errorf("inner message is %s of %d bytes, want %s of %d", j.Inner, j.InnerSize, record.Hash(sha256.Sum256(inner)), len(inner))
			}
			r, err := mail.Inner(iotest.OneByteReader(bytes.NewReader(report)))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, inner) {
				t.Errorf("Inner gave %d bytes and %v, want the %d of the inner message", len(got), err, len(inner))
			}
		})
	}
}

// However the transport cuts the bytes up, the answer is the same.
func TestJournalChunks(t *testing.T) {
	for name, report := range fixtures(t) {
		want, wantErr := parseJournal(t, report, len(report))
		for chunk := 1; chunk < 70; chunk++ {
			got, err := parseJournal(t, report, chunk)
			if d := cmp.Diff(want, got); d != "" || (err == nil) != (wantErr == nil) {
				t.Fatalf("%s in chunks of %d: %v, want %v\n%s", name, chunk, err, wantErr, d)
			}
		}
	}
}

func TestJournalTruncatedIsNeverUnderstood(t *testing.T) {
	report := fixtures(t)["exchange2016"]
	end := bytes.LastIndex(report, []byte("\r\n--outer--"))
	for n := range end + len("\r\n--outer--") - 2 {
		if j, err := parseJournal(t, report[:n], n+1); err == nil {
			t.Fatalf("the first %d of %d bytes were taken for a whole report with an inner message of %d bytes", n, len(report), j.InnerSize)
		}
	}
}

func TestInnerOfTruncatedReportIsAnError(t *testing.T) {
	r, err := mail.Inner(bytes.NewReader(fixtures(t)["bad-truncated"]))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); !errors.Is(err, mail.ErrBadJournal) {
		t.Errorf("reading an inner message that is cut off gave %v, want ErrBadJournal", err)
	}
	broken := errors.New("disk on fire")
	if _, err := mail.Inner(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("the reader's own error was lost: %v", err)
	}
}

// The inner message comes out byte for byte, whatever is in it.
func TestInnerMessageExact(t *testing.T) {
	head := "X-MS-Journal-Report:\r\nContent-Type: multipart/mixed; boundary=\"=_b (1)\"\r\n\r\n" +
		"--=_b (1)\r\n\r\nSender: a@example.com\r\nTo: b@example.com\r\n--=_b (1)\r\nContent-Type: message/rfc822\r\n\r\n"
	for _, inner := range []string{
		"", "\n", "\r", "\r\n", "\r\r\n", "\n\n", "no newline", "nul\x00\r\n", "bare\rcr\r\r", "\r\n--", "\n--=_b", "--=_b (1)x\r\n",
		"--=_b (1) -- x\n--=_b (1)\r\rz", "--=_b (1)" + strings.Repeat(" ", 300) + "\r\n", strings.Repeat("x", 100_000) + "\r",
	} {
		for _, eol := range []string{"\r\n", "\n"} {
			if eol == "\n" && strings.HasSuffix(inner, "\r") {
				continue // the CR is then part of the delimiter, by the rule
			}
			report := []byte(head + inner + eol + "--=_b (1)--")
			for _, chunk := range []int{1, 7, len(report)} {
				j, err := parseJournal(t, report, chunk)
				if err != nil || j.Inner != sha256.Sum256([]byte(inner)) || j.InnerSize != int64(len(inner)) {
					t.Errorf("inner %.40q, %q, chunk %d: %+v, %v", inner, eol, chunk, j, err)
				}
			}
		}
	}
}

func TestJournalMemoryIsBounded(t *testing.T) {
	line := bytes.Repeat([]byte("x"), 1<<20)
	for name, head := range map[string]string{
		"header":      "X-MS-Journal-Report:",
		"boundary":    "X-MS-Journal-Report:\nContent-Type: multipart/mixed; boundary=b\n\n--b",
		"part header": "X-MS-Journal-Report:\nContent-Type: multipart/mixed; boundary=b\n\n--b\nX:",
		"text":        "X-MS-Journal-Report:\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nSender: ",
		"inner":       "X-MS-Journal-Report:\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nSender:\n--b\nContent-Type: message/rfc822\n\n",
	} {
		p := mail.NewJournalParser()
		io.WriteString(p, head)
		allocated := testing.AllocsPerRun(64, func() { p.Write(line) })
		if allocated > 4 {
			t.Errorf("%s: %v allocations a MiB", name, allocated)
		}
		if _, err := p.Close(); !errors.Is(err, mail.ErrBadJournal) {
			t.Errorf("%s: %v, want ErrBadJournal", name, err)
		}
	}
}

// A report text made of folds or of recipients costs no more than its length;
// with the square of it this test would not end.
func TestHostileReportsAreLinear(t *testing.T) {
	for _, unit := range []string{" x\n", "To: a@b, c@d; e Expanded: f\n", "To: ", "Recipients:\n", "<\"", " Expanded:"} {
		text := "Sender: a@b\nTo: x@y,\n" + strings.Repeat(unit, 4<<20/len(unit))
		report := "X-MS-Journal-Report:\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\n" + text + "\n--b\nContent-Type: message/rfc822\n\nx\n--b--\n"
		if _, err := parseJournal(t, []byte(report), 32<<10); err != nil {
			t.Errorf("%q: %v", unit, err)
		}
	}
}

func TestJournalCloseTwice(t *testing.T) {
	p := mail.NewJournalParser()
	p.Write(fixtures(t)["exchange2016"])
	first, err1 := p.Close()
	p.Write([]byte("more"))
	second, err2 := p.Close()
	if d := cmp.Diff(first, second); d != "" || err1 != nil || err2 != nil {
		t.Errorf("closing again changed the answer: %v %v %s", err1, err2, d)
	}
	empty := mail.NewJournalParser()
	for range 2 {
		if _, err := empty.Close(); !errors.Is(err, mail.ErrNotJournal) {
			t.Errorf("empty message: %v", err)
		}
	}
}

func FuzzJournal(f *testing.F) {
	for _, report := range fixtures(f) {
		f.Add(report, 7)
	}
	f.Fuzz(func(t *testing.T, report []byte, chunk int) {
		chunk = max(1, chunk%4096)
		j, err := parseJournal(t, report, chunk)
		whole, wholeErr := parseJournal(t, report, len(report)+1)
		if d := cmp.Diff(j, whole); d != "" || (err == nil) != (wholeErr == nil) {
			t.Fatalf("chunks of %d change the answer: %v, %v\n%s", chunk, err, wholeErr, d)
		}
		r, innerErr := mail.Inner(bytes.NewReader(report))
		var inner []byte
		if innerErr == nil {
			inner, innerErr = io.ReadAll(r)
		}
		if (err == nil) != (innerErr == nil) {
			t.Fatalf("JournalParser says %v, Inner %v", err, innerErr)
		}
		if err == nil && (j.Inner != sha256.Sum256(inner) || j.InnerSize != int64(len(inner))) {
			t.Fatalf("Inner gives other bytes than were hashed")
		}
	})
}
