package mailbox_test

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"chainmail/archive/mail/mailtest"
	"chainmail/archive/mailbox"

	"github.com/google/go-cmp/cmp"
)

var formats = []mailbox.Format{mailbox.EML, mailbox.MboxOut, mailbox.Maildir, mailbox.Zip}

var received = time.Date(2024, 5, 14, 9, 30, 0, 0, time.UTC)

func meta(b []byte) mailbox.Meta {
	h := sha256.Sum256(b)
	return mailbox.Meta{
		SHA256: hex.EncodeToString(h[:]), Size: int64(len(b)), ReceivedAt: received,
		From: "alice@example.com", To: []string{"bob@example.com"},
	}
}

func export(t testing.TB, f mailbox.Format, out string, messages ...[]byte) {
	t.Helper()
	s, err := mailbox.Create(f, out)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Discard()
	for _, m := range messages {
		if err := s.Add(meta(m), bytes.NewReader(m)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// readAll gives the messages of sources by name, and the errors.
func readAll(t testing.TB, o mailbox.Options, paths ...string) (names []string, messages [][]byte, problems []error) {
	t.Helper()
	for item, err := range mailbox.Open(paths, o) {
		if err != nil {
			problems = append(problems, err)
			continue
		}
		names = append(names, item.Name)
		messages = append(messages, readItem(t, item))
	}
	return names, messages, problems
}

func readItem(t testing.TB, item mailbox.Item) []byte {
	t.Helper()
	r, err := item.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("%s: %v", item.Name, err)
	}
	return b
}

// sameSet compares messages where the format does not keep their order.
func sameSet(a, b [][]byte) bool {
	count := map[string]int{}
	for _, m := range a {
		count[string(m)]++
	}
	for _, m := range b {
		count[string(m)]--
	}
	for _, n := range count {
		if n != 0 {
			return false
		}
	}
	return true
}

func checkRoundTrip(t *testing.T, f mailbox.Format, messages [][]byte) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	export(t, f, out, messages...)
	_, got, problems := readAll(t, mailbox.Options{}, out)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if f == mailbox.MboxOut && !slices.EqualFunc(messages, got, bytes.Equal) || !sameSet(messages, got) {
		t.Fatalf("%d messages came back from %d, or not the same bytes", len(got), len(messages))
	}
}

func TestOddMessagesRoundTrip(t *testing.T) {
	var all [][]byte
	for _, m := range mailtest.Odd() {
		all = append(all, m.Bytes)
	}
	for _, f := range formats {
		t.Run(string(f), func(t *testing.T) {
			for _, m := range mailtest.Odd() {
				t.Run(m.Name, func(t *testing.T) { checkRoundTrip(t, f, [][]byte{m.Bytes}) })
			}
			t.Run("all", func(t *testing.T) { checkRoundTrip(t, f, all) })
		})
	}
}

func TestRealMailRoundTrip(t *testing.T) {
	mailtest.EachCorpus(t, func(t *testing.T, messages []mailtest.Message) {
		var all [][]byte
		seen := map[string]bool{}
		for _, m := range messages {
			if !seen[string(m.Bytes)] {
				seen[string(m.Bytes)] = true
				all = append(all, m.Bytes)
			}
		}
		for _, f := range formats {
			t.Run(string(f), func(t *testing.T) { checkRoundTrip(t, f, all) })
		}
	})
}

// Short strings over the characters that matter to mbox, all of them up to a
// length, in pairs, so that each stands before a From_ line and before the end.
func TestMboxRoundTripExhaustive(t *testing.T) {
	pieces := []string{"From ", "From a Tue May 14 09:30:00 2024", ">", "\n", "\r", "a:b", "Content-Length: 2\n\n", "\x00"}
	var messages [][]byte
	var grow func(prefix string, depth int)
	grow = func(prefix string, depth int) {
		messages = append(messages, []byte(prefix))
		if depth > 0 {
			for _, p := range pieces {
				grow(prefix+p, depth-1)
			}
		}
	}
	grow("", 4)
	checkRoundTrip(t, mailbox.MboxOut, messages)
}

func TestMboxHugeMessageIsStreamed(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out.mbox")
	line := bytes.Repeat([]byte("x"), 1<<20)
	line = append(line, "\nFrom here\n>From there\n"...)
	const lines = 64
	source := func() io.Reader {
		readers := []io.Reader{strings.NewReader("Subject: x\n\n")}
		for range lines {
			readers = append(readers, bytes.NewReader(line))
		}
		return io.MultiReader(readers...)
	}
	digest := sha256.New()
	size, _ := io.Copy(digest, source())
	m := mailbox.Meta{SHA256: hex.EncodeToString(digest.Sum(nil)), Size: size, ReceivedAt: received}
	allocated := testing.AllocsPerRun(1, func() {
		os.Remove(out)
		s, err := mailbox.Create(mailbox.MboxOut, out)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Add(m, source()); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for item, err := range mailbox.Open([]string{out}, mailbox.Options{}) {
			if err != nil {
				t.Fatal(err)
			}
			r, _ := item.Open()
			got := sha256.New()
			io.Copy(got, r)
			if hex.EncodeToString(got.Sum(nil)) != m.SHA256 {
				t.Error("a huge message came back altered")
			}
		}
	})
	if allocated > 2000 {
		t.Errorf("%v allocations for a message of %d bytes", allocated, size)
	}
}

func TestFoldersAreResumable(t *testing.T) {
	for _, f := range []mailbox.Format{mailbox.EML, mailbox.Maildir} {
		t.Run(string(f), func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			a, b := []byte("Subject: a\n\na"), []byte("Subject: b\n\nb")
			export(t, f, out, a)
			s, err := mailbox.Create(f, out)
			if err != nil {
				t.Fatal(err)
			}
			if !s.Has(meta(a)) || s.Has(meta(b)) {
				t.Errorf("Has(a) %v, want true; Has(b) %v, want false", s.Has(meta(a)), s.Has(meta(b)))
			}
			if err := s.Add(meta(a), iotest.ErrReader(errors.New("read"))); err != nil {
				t.Errorf("a message that is there was fetched again: %v", err)
			}
			export(t, f, out, a, b)
			if _, got, _ := readAll(t, mailbox.Options{}, out); !sameSet(got, [][]byte{a, b}) {
				t.Errorf("%d messages after two exports, want 2", len(got))
			}
		})
	}
}

func TestMaildirMessageSeenByAReader(t *testing.T) {
	out := filepath.Join(t.TempDir(), "md")
	m := []byte("Subject: a\n\na")
	export(t, mailbox.Maildir, out, m)
	files, _ := filepath.Glob(filepath.Join(out, "new", "*"))
	if len(files) != 1 || strings.ContainsAny(filepath.Base(files[0]), ":/") {
		t.Fatalf("in new: %v", files)
	}
	if err := os.Rename(files[0], filepath.Join(out, "cur", filepath.Base(files[0])+":2,S")); err != nil {
		t.Fatal(err)
	}
	export(t, mailbox.Maildir, out, m)
	if _, got, _ := readAll(t, mailbox.Options{}, out); len(got) != 1 {
		t.Errorf("%d copies, want 1", len(got))
	}
}

func TestNothingIsOverwritten(t *testing.T) {
	m := []byte("Subject: a\n\na")
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	write(t, file, "precious")
	for _, f := range formats {
		if s, err := mailbox.Create(f, file); !errors.Is(err, mailbox.ErrExists) {
			t.Errorf("%s over a file: %v, %v", f, s, err)
		}
	}
	if _, err := mailbox.Create(mailbox.Maildir, dir); !errors.Is(err, mailbox.ErrExists) {
		t.Errorf("a Maildir into a folder of other things: %v", err)
	}
	other := filepath.Join(dir, meta(m).SHA256+".eml")
	write(t, other, "precious")
	s, err := mailbox.Create(mailbox.EML, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Add(meta(m), bytes.NewReader(m)); !errors.Is(err, mailbox.ErrExists) || !strings.Contains(err.Error(), other) {
		t.Errorf("over another file: %v, want ErrExists with its name", err)
	}
	for _, f := range []mailbox.Format{mailbox.MboxOut, mailbox.Zip} { // a file that turns up meanwhile
		name := filepath.Join(dir, "late-"+string(f))
		s, err := mailbox.Create(f, name)
		if err != nil {
			t.Fatal(err)
		}
		write(t, name, "precious")
		if err := s.Close(); !errors.Is(err, mailbox.ErrExists) {
			t.Errorf("%s: Close %v, want ErrExists", f, err)
		}
		if b, _ := os.ReadFile(name); string(b) != "precious" {
			t.Errorf("%s replaced the file by %q", f, b)
		}
	}
	for _, name := range []string{file, other} {
		if b, _ := os.ReadFile(name); string(b) != "precious" {
			t.Errorf("%s is now %q", name, b)
		}
	}
}

// A message that cannot be read, or is not the one it should be, leaves no
// trace, and the export goes on.
func TestBadMessageLeavesNoTrace(t *testing.T) {
	good := [][]byte{[]byte("Subject: a\n\nfirst"), []byte("Subject: b\n\nFrom me\n")}
	bad := []byte("Subject: bad\n\nbody\n")
	broken := errors.New("corrupt")
	for _, f := range formats {
		t.Run(string(f), func(t *testing.T) {
			dir := t.TempDir()
			out := filepath.Join(dir, "out")
			s, err := mailbox.Create(f, out)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Discard()
			if err := s.Add(meta(good[0]), bytes.NewReader(good[0])); err != nil {
				t.Fatal(err)
			}
			if err := s.Add(meta(bad), io.MultiReader(bytes.NewReader(bad[:9]), iotest.ErrReader(broken))); !errors.Is(err, broken) {
				t.Errorf("unreadable: %v", err)
			}
			if err := s.Add(meta(bad), strings.NewReader("something else")); !errors.Is(err, mailbox.ErrAltered) {
				t.Errorf("altered: %v", err)
			}
			wrong := meta(bad)
			wrong.SHA256 = "../../etc/passwd"
			if err := s.Add(wrong, bytes.NewReader(bad)); err == nil {
				t.Error("a hash that is none was accepted")
			}
			if err := s.Add(meta(good[1]), bytes.NewReader(good[1])); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			_, got, problems := readAll(t, mailbox.Options{}, dir)
			if !sameSet(got, good) || len(problems) > 0 {
				t.Errorf("output holds %q, %v; want only the good ones", got, problems)
			}
		})
	}
}

func TestDiscardLeavesNoFile(t *testing.T) {
	for _, f := range []mailbox.Format{mailbox.MboxOut, mailbox.Zip} {
		dir := t.TempDir()
		s, err := mailbox.Create(f, filepath.Join(dir, "out"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := mailbox.Create(f, filepath.Join(dir, "out")); !errors.Is(err, mailbox.ErrExists) {
			t.Errorf("%s: two exports at once into one file: %v", f, err)
		}
		m := []byte("x")
		if err := s.Add(meta(m), bytes.NewReader(m)); err != nil {
			t.Fatal(err)
		}
		s.Discard()
		s.Discard()
		if err := s.Add(meta(m), bytes.NewReader(m)); err == nil {
			t.Errorf("%s took a message after Discard", f)
		}
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("%s left %v", f, left)
		}
	}
}

func TestZipManifest(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out.zip")
	m := []byte("Subject: a\n\na")
	export(t, mailbox.Zip, out, m)
	z, err := zip.OpenReader(out)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	f, err := z.Open("manifest.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.NewDecoder(f).Decode(&got); err != nil {
		t.Fatal(err)
	}
	name := "2024/05/14/" + meta(m).SHA256 + ".eml"
	want := map[string]any{
		"path": name, "sha256": meta(m).SHA256, "size": float64(len(m)), "received_at": "2024-05-14T09:30:00Z",
		"from": "alice@example.com", "to": []any{"bob@example.com"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if _, err := z.Open(name); err != nil {
		t.Error(err)
	}
}

func TestCreateRefusesUnknownFormat(t *testing.T) {
	if _, err := mailbox.Create("pst", "x"); err == nil || !strings.Contains(err.Error(), "eml, mbox, maildir or zip") {
		t.Errorf("got %v", err)
	}
}

func write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
}
