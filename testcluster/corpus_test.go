package testcluster_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"testing"

	"chainmail/archive/mail/mailtest"
	"chainmail/archive/mailbox"
	"chainmail/archive/record"
	"chainmail/node/client"
	"chainmail/testcluster/support"
)

// TestRealMailInAndOut sends real mail, and mail that breaks the rules, by
// every way in, and takes it out by every way out. Not a byte may differ.
func TestRealMailInAndOut(t *testing.T) {
	t.Run("odd", func(t *testing.T) { inAndOut(t, mailtest.Odd()) })
	mailtest.EachCorpus(t, inAndOut)
}

func inAndOut(t *testing.T, messages []mailtest.Message) {
	n := support.Start(t, config(t))
	want := map[record.Hash][]byte{}
	keep := func(msg []byte) { want[sha256.Sum256(msg)] = msg }

	smtp, lmtp := support.Dial(t, n.Addrs()["smtp"], "EHLO test"), support.Dial(t, n.Addrs()["lmtp"], "LHLO test")
	for _, m := range messages {
		keep(smtp.Data(m.Bytes, 1, 1))
		keep(smtp.BDAT(m.Bytes, 1))
		keep(lmtp.Data(m.Bytes, 3, 3))
	}
	dir := t.TempDir()
	for i, m := range messages {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%04d.eml", i)), m.Bytes, 0o600); err != nil {
			t.Fatal(err)
		}
		keep(m.Bytes)
	}
	for range 2 {
		s, err := n.Import(t.Context(), items([]string{dir}), 0, nil)
		if err != nil || s.Failed > 0 {
			t.Fatalf("import: %+v, %v", s, err)
		}
		if s.Added > 0 {
			t.Errorf("import added %d messages that BDAT had brought", s.Added)
		}
	}
	compare(t, n, want)
	for _, f := range []mailbox.Format{mailbox.EML, mailbox.MboxOut, mailbox.Maildir, mailbox.Zip} {
		t.Run(string(f), func(t *testing.T) { export(t, n, f, want) })
	}
}

// compare reads every message back and finds no other.
func compare(t *testing.T, n support.Node, want map[record.Hash][]byte) {
	t.Helper()
	for h, msg := range want {
		raw, err := n.Raw(t.Context(), h.String())
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(raw)
		raw.Close()
		if err != nil || !bytes.Equal(got, msg) {
			t.Errorf("message %v: %d bytes for %d, %v", h, len(got), len(msg), err)
		}
	}
	listed := 0
	for _, err := range n.Messages(t.Context(), client.Query{}) {
		if err != nil {
			t.Fatal(err)
		}
		listed++
	}
	if listed != len(want) {
		t.Errorf("%d messages listed, want %d", listed, len(want))
	}
}

// export writes everything out and into a second node, whose bytes must be the
// same.
func export(t *testing.T, n support.Node, f mailbox.Format, want map[record.Hash][]byte) {
	out := filepath.Join(t.TempDir(), "out")
	sink, err := mailbox.Create(f, out)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Discard()
	s, err := n.Export(t.Context(), client.Query{}, sink, nil)
	if err != nil || s.Failed > 0 || int(s.Added) != len(want) {
		t.Fatalf("export: %+v, %v", s, err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	second := support.Start(t, config(t))
	if s, err := second.Import(t.Context(), items([]string{out}), 0, nil); err != nil || s.Failed > 0 || int(s.Added) != len(want) {
		t.Fatalf("import: %+v, %v", s, err)
	}
	compare(t, second, want)
}

// items are the messages below some paths.
func items(paths []string) iter.Seq2[client.Item, error] {
	return func(yield func(client.Item, error) bool) {
		for it, err := range mailbox.Open(paths, mailbox.Options{}) {
			if !yield(client.Item{Name: it.Name, Open: it.Open}, err) {
				return
			}
		}
	}
}

// TestFiveThousandRecipients: every one of them is in the receipt.
func TestFiveThousandRecipients(t *testing.T) {
	n := support.Start(t, config(t))
	msg := support.Dial(t, n.Addrs()["smtp"], "EHLO test").Data([]byte("Subject: all staff\r\n\r\nhi\r\n"), 5000, 1)
	m, err := n.Message(t.Context(), fmt.Sprintf("%x", sha256.Sum256(msg)))
	if err != nil {
		t.Fatal(err)
	}
	if to := m.Receipts[0].To; len(to) != 5000 || to[4999] != "r4999@example.com" {
		t.Errorf("%d recipients kept", len(to))
	}
}
