package mailbox_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"chainmail/archive/mailbox"

	"github.com/google/go-cmp/cmp"
)

func gzipped(s string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write([]byte(s))
	z.Close()
	return b.String()
}

func TestFolderOfEverything(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.eml":                "Subject: eml\n\nx",
		"b.EML":                from + "a message that begins like an mbox",
		"c/d/e.eml":            "",
		"c/noext":              "Received: x\nSubject: noext\n\nx",
		"c/packed.eml.gz":      gzipped("Subject: packed\n\nx"),
		"c/mail.mbox":          from + "Subject: mbox 1\n\nx\n\n" + from + "Subject: mbox 2\n\nx\n\n",
		"c/pipermail.txt.gz":   gzipped(from + "Subject: gz 1\n\nx\n\n" + from + "Subject: gz 2\n\nx\n\n"),
		"md/cur/1.a.h:2,S":     "Subject: cur\n\nx",
		"md/new/2.a.h":         "no header at all",
		"md/tmp/3.a.h":         "Subject: never delivered\n\nx",
		"md/dovecot.index":     "\x00binary",
		"md/.Sent/cur/4.a.h":   "Subject: sent\n\nx",
		"md/.Sent/new/.keep":   "Subject: hidden\n\nx",
		"md/plain/cur/5.a.h":   "Subject: subfolder\n\nx",
		"md/plain/new/6.a.h":   "Subject: subfolder new\n\nx",
		"other/readme.txt":     "hello: world\nthis is no mail",
		"other/empty":          "",
		"other/x.msg":          "\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
		"other/.partial-12":    "Subject: half of an",
		"other/x.mbox.partial": from + "x",
		"other/broken.eml.gz":  "\x1f\x8bnot gzip",
	} {
		write(t, filepath.Join(dir, name), text)
	}
	export(t, mailbox.Zip, filepath.Join(dir, "z.zip"), []byte("Subject: zipped\n\nx"))
	write(t, filepath.Join(dir, "other/broken.zip"), "PK\x03\x04broken")
	if err := os.Symlink("../a.eml", filepath.Join(dir, "other", "link.eml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, filepath.Join(dir, "other", "loop")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "other", "fifo"), 0o666); err != nil {
		t.Fatal(err)
	}
	var got []string
	var skipped, failed []string
	for item, err := range mailbox.Open([]string{dir}, mailbox.Options{}) {
		rel, _ := filepath.Rel(dir, item.Name)
		switch {
		case errors.Is(err, mailbox.ErrSkipped):
			skipped = append(skipped, rel)
		case err != nil:
			failed = append(failed, rel)
		default:
			line, _, _ := strings.Cut(string(readItem(t, item)), "\n")
			got = append(got, rel+" "+line)
		}
	}
	want := []string{
		"a.eml Subject: eml",
		"b.EML " + strings.TrimSpace(from),
		"c/d/e.eml ",
		"c/mail.mbox#1 Subject: mbox 1",
		"c/mail.mbox#2 Subject: mbox 2",
		"c/noext Subject: noext",
		"c/packed.eml.gz Subject: packed",
		"c/pipermail.txt.gz#1 Subject: gz 1",
		"c/pipermail.txt.gz#2 Subject: gz 2",
		"md/.Sent/cur/4.a.h Subject: sent",
		"md/.Sent/new/.keep Subject: hidden",
		"md/cur/1.a.h:2,S Subject: cur",
		"md/new/2.a.h no header at all",
		"md/plain/cur/5.a.h Subject: subfolder",
		"md/plain/new/6.a.h Subject: subfolder new",
		"z.zip#2024/05/14/" + meta([]byte("Subject: zipped\n\nx")).SHA256 + ".eml Subject: zipped",
	}
	want[5] = "c/noext Received: x"
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("messages -want +got:\n%s", d)
	}
	if d := cmp.Diff([]string{
		"other/.partial-12", "other/empty", "other/fifo", "other/link.eml", "other/loop",
		"other/readme.txt", "other/x.mbox.partial", "other/x.msg",
	}, skipped); d != "" {
		t.Errorf("skipped -want +got:\n%s", d)
	}
	if d := cmp.Diff([]string{"other/broken.eml.gz", "other/broken.zip"}, failed); d != "" {
		t.Errorf("failed -want +got:\n%s", d)
	}
}

func TestNamedPaths(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "words.txt"), "just words")
	write(t, filepath.Join(dir, "x.tar"), strings.Repeat("\x00", 257)+"ustar  "+strings.Repeat("\x00", 300))
	write(t, filepath.Join(dir, "real", "a.eml"), "Subject: a\n\nx")
	if err := os.Symlink("real", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		messages int
		err      error
	}{
		"words.txt": {1, nil}, // whoever names a file means it
		"x.tar":     {0, mailbox.ErrSkipped},
		"link":      {1, nil},
		"missing":   {0, os.ErrNotExist},
	} {
		_, got, problems := readAll(t, mailbox.Options{}, filepath.Join(dir, name))
		if len(got) != tt.messages || !errors.Is(errors.Join(problems...), tt.err) || tt.err == nil && len(problems) > 0 {
			t.Errorf("%s: %d messages, %v; want %d, %v", name, len(got), problems, tt.messages, tt.err)
		}
	}
	if _, err := mailbox.Scan([]string{filepath.Join(dir, "missing")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Scan of what is not there: %v", err)
	}
}

func TestUnreadableFilesAreReported(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root reads everything; see TestFileThatVanishes")
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.eml"), "x")
	write(t, filepath.Join(dir, "b.eml"), "y")
	if err := os.Chmod(filepath.Join(dir, "a.eml"), 0); err != nil {
		t.Fatal(err)
	}
	_, got, problems := readAll(t, mailbox.Options{}, dir)
	if len(got) != 1 || len(problems) != 1 || !strings.Contains(problems[0].Error(), "a.eml") {
		t.Errorf("%q, %v", got, problems)
	}
}

// A file that goes away during the iteration is reported, and the rest read.
func TestFileThatVanishes(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"a.eml", "b.eml", "c.eml"} {
		write(t, filepath.Join(dir, n), "x")
	}
	read, problems := 0, []error(nil)
	for item, err := range mailbox.Open([]string{dir}, mailbox.Options{}) {
		if err != nil {
			problems = append(problems, err)
			continue
		}
		read++
		readItem(t, item)
		os.Remove(filepath.Join(dir, "b.eml"))
	}
	if read != 2 || len(problems) != 1 || !strings.Contains(problems[0].Error(), "b.eml") {
		t.Errorf("read %d, problems %v", read, problems)
	}
}

func TestStoppingEarly(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a", "x.mbox"), from+"x\n\n"+from+"y\n\n")
	write(t, filepath.Join(dir, "md", "cur", "1"), "x")
	write(t, filepath.Join(dir, "md", "new", "2"), "x")
	export(t, mailbox.Zip, filepath.Join(dir, "z.zip"), []byte("a"), []byte("b"))
	for stop := range 7 {
		n := 0
		for range mailbox.Open([]string{dir, dir}, mailbox.Options{}) {
			if n++; n > stop {
				break
			}
		}
		if n != stop+1 {
			t.Errorf("stopped after %d, want %d", n, stop+1)
		}
	}
}
