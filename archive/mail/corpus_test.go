package mail_test

import (
	"bytes"
	"errors"
	"testing"
	"unicode/utf8"

	"chainmail/archive/mail"
	"chainmail/archive/mail/mailtest"

	// Its test data is a corpus of the tests here; the import keeps it in go.mod.
	_ "github.com/jhillyerd/enmime/v2"
)

// Nothing in real mail may upset the parsers, and most of it has a header.
func TestRealMail(t *testing.T) {
	mailtest.EachCorpus(t, func(t *testing.T, messages []mailtest.Message) {
		readable := 0
		for _, m := range messages {
			fields, err := mail.ParseHeader(bytes.NewReader(m.Bytes))
			if err != nil {
				t.Errorf("%s: %v", m.Name, err)
			}
			for _, f := range fields {
				if !utf8.ValidString(f.Value) {
					t.Errorf("%s: %s is not UTF-8", m.Name, f.Name)
				}
			}
			if from, _ := mail.EnvelopeFrom(fields); from != "" && mail.Get(fields, "Subject") != "" {
				readable++
			}
			if _, err := parseJournal(t, m.Bytes, 100); !errors.Is(err, mail.ErrNotJournal) {
				t.Errorf("%s was taken for a journal report: %v", m.Name, err)
			}
		}
		t.Logf("%d messages, %d with a sender and a subject", len(messages), readable)
		if readable*3 < len(messages) {
			t.Errorf("only %d of %d messages have a sender and a subject", readable, len(messages))
		}
	})
}
