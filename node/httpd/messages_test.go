package httpd_test

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"chainmail/archive"
	"chainmail/archive/record"
	"chainmail/node/api"
)

func envelope(from string, to ...string) record.Envelope {
	return record.Envelope{From: from, To: to, Client: "192.0.2.1:4711", Helo: "mx.example", Connector: "journal"}
}

func mailText(i int) string {
	return fmt.Sprintf("Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?= %d\r\nFrom: a@x.example\r\n\r\nbody %d\r\n", i, i)
}

func sum(s string) string { return record.Hash(sha256.Sum256([]byte(s))).String() }

// page asks for a list and returns which messages, by number, are on it.
func (n *node) page(query url.Values) (numbers []int, l api.MessageList) {
	n.t.Helper()
	n.get("/api/v1/messages?"+query.Encode()).json(http.StatusOK, &l)
	for _, m := range l.Messages {
		for i := range 30 {
			if m.SHA256 == sum(mailText(i)) {
				numbers = append(numbers, i)
			}
		}
	}
	return numbers, l
}

func TestListSelects(t *testing.T) {
	n := start(t, nil)
	inner := "Subject: inner\r\n\r\nx"
	for i, e := range []record.Envelope{
		envelope("ann@example.com", "bob@example.org"),
		envelope("Ann@Example.COM", "bob@sub.example.org", "eve@other.example"),
		envelope("", "ann@example.com"),
		{From: "ms@journal.example", To: []string{"archive@journal.example"}, Journal: &record.Journal{
			Inner: record.Hash(sha256.Sum256([]byte(inner))), InnerSize: int64(len(inner)), Sender: "carl@example.com", Subject: "inner",
			Recipients: []record.JournalRecipient{{Address: "dora@secret.example", Role: "Bcc"}},
		}},
	} {
		n.fake.add(mailText(i), e)
	}
	for _, c := range []struct {
		query string
		want  string
	}{
		{"", "[0 1 2 3]"},
		{"limit=2", "[0 1]"},
		{"since=2026-01-02T04:04:05Z", "[1 2 3]"},
		{"until=2026-01-02T04:04:05Z", "[0]"},
		{"since=2026-01-02T05:04:05%2B01:00&until=2026-01-02T06:04:05Z", "[1 2]"},
		{"since=2026-01-02", "[0 1 2 3]"},
		{"until=2026-01-02", "[]"},
		{"from=ann@example.com", "[0 1]"},
		{"from=ANN@EXAMPLE.com", "[0 1]"},
		{"from=example.com", "[0 1 3]"},
		{"from=@example.com", "[0 1 3]"},
		{"from=nn@example.com", "[]"},
		{"to=example.org", "[0]"},
		{"to=eve@other.example", "[1]"},
		{"to=dora@secret.example", "[3]"},
		{"from=ann@example.com&to=sub.example.org", "[1]"},
		{"after=" + sum(mailText(1)), "[2 3]"},
		{"after=4f2a9c1be0d37786:3", "[3]"},
		{"order=oldest&limit=2", "[0 1]"},
		{"order=newest&limit=2", "[3 2]"},
		{"order=newest&after=4f2a9c1be0d37786:3", "[1 0]"},
	} {
		values, err := url.ParseQuery(c.query)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := n.page(values); fmt.Sprint(got) != c.want {
			t.Errorf("%s: messages %v, want %s", c.query, got, c.want)
		}
	}
}

func TestListPages(t *testing.T) {
	n := start(t, nil)
	for i := range 7 {
		n.fake.add(mailText(i), envelope("a@x.example", "b@y.example"))
	}
	var all []int
	q := url.Values{"limit": {"3"}}
	for pages := 1; ; pages++ {
		numbers, l := n.page(q)
		all = append(all, numbers...)
		if l.Next == "" {
			if pages != 3 {
				t.Errorf("%d pages", pages)
			}
			break
		}
		q.Set("after", l.Next)
	}
	if fmt.Sprint(all) != "[0 1 2 3 4 5 6]" {
		t.Errorf("pages give %v", all)
	}
}

func TestListSubjects(t *testing.T) {
	n := start(t, nil)
	n.fake.add(mailText(0), envelope("a@x.example", "b@y.example"))
	damaged := n.fake.add(mailText(1), envelope("a@x.example", "b@y.example"))
	n.fake.damagedAt[damaged.Hash] = 0
	_, plain := n.page(url.Values{})
	if plain.Messages[0].Subject != "" {
		t.Error("a subject that nobody asked for")
	}
	_, l := n.page(url.Values{"subject": {"true"}})
	if got := l.Messages[0].Subject; got != "Grüße 0" {
		t.Errorf("subject %q", got)
	}
	if got := l.Messages[1].Subject; got != "" {
		t.Errorf("subject of a damaged message: %q", got)
	}
}

// TestListBoundsItsWork: a filter that matches nothing must not make one
// request read the whole archive.
func TestListBoundsItsWork(t *testing.T) {
	n := start(t, nil)
	for i := range 10_001 {
		n.fake.add(fmt.Sprintf("m%d", i), envelope("a@x.example"))
	}
	n.fake.add(mailText(5), envelope("rare@y.example"))
	numbers, l := n.page(url.Values{"from": {"rare@y.example"}})
	if len(numbers) != 0 || l.Next == "" {
		t.Fatalf("first page: %v, next %q", numbers, l.Next)
	}
	if numbers, l = n.page(url.Values{"from": {"rare@y.example"}, "after": {l.Next}}); fmt.Sprint(numbers) != "[5]" || l.Next != "" {
		t.Errorf("second page: %v, next %q", numbers, l.Next)
	}
}

// TestListBoundsItsAnswer: mails with very many recipients make short pages.
func TestListBoundsItsAnswer(t *testing.T) {
	n := start(t, nil)
	for i := range 12 {
		n.fake.add(mailText(i), envelope("a@x.example", make([]string, 10_000)...))
	}
	numbers, l := n.page(url.Values{})
	if len(numbers) != 5 || l.Next == "" {
		t.Errorf("%d messages on the page, next %q", len(numbers), l.Next)
	}
}

func TestListRefuses(t *testing.T) {
	n := start(t, nil)
	n.fake.add(mailText(0), envelope("a@x.example"))
	for query, words := range map[string]string{
		"limit=0":                  "from 1 to 1000",
		"limit=1001":               "from 1 to 1000",
		"limit=many":               `"many"`,
		"since=yesterday":          "2026-01-31",
		"until=31.01.2026":         "2026-01-31",
		"from=a@":                  "ann@example.com",
		"to=a@x.example,b@y.other": "one address",
		"subject=perhaps":          "true or false",
		"order=random":             "newest or oldest",
		"from=a@x.example&from=b":  "2 times",
		"after=abc":                "ID",
	} {
		n.get("/api/v1/messages?"+query).refused(http.StatusBadRequest, words)
	}
	n.get("/api/v1/messages?after=abcdef").refused(http.StatusNotFound, "no such message")
}

// TestArchiveErrors: each error of the archive has its status, on every route
// that reads.
func TestArchiveErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
		word string
	}{
		{archive.ErrNotFound, http.StatusNotFound, "no such message"},
		{archive.ErrAmbiguous, http.StatusConflict, "more digits"},
		{archive.ErrBadID, http.StatusBadRequest, "4f2a9c1be0d37786:42"},
		{archive.ErrClosed, http.StatusServiceUnavailable, "shutting down"},
		{archive.ErrCorrupt, http.StatusInternalServerError, "chainmail verify"},
		{errDisk, http.StatusInternalServerError, "log"},
	} {
		n := start(t, nil)
		n.fake.add(mailText(0), envelope("a@x.example"))
		n.fake.readErr = c.err
		id := sum(mailText(0))
		for _, path := range []string{"messages?after=" + id, "messages/" + id, "messages/" + id + "/raw"} {
			n.get("/api/v1/"+path).refused(c.code, c.word)
		}
	}
}

func TestShow(t *testing.T) {
	n := start(t, nil)
	first := n.fake.add(mailText(0), envelope("a@x.example"))
	n.fake.add(mailText(0), envelope("a@x.example", "late@y.example"))
	hash := sum(mailText(0))
	for _, id := range []string{hash, hash[:8], first.Position.String(), url.PathEscape(first.Position.String())} {
		var m api.Message
		n.get("/api/v1/messages/"+id).json(http.StatusOK, &m)
		if m.SHA256 != hash || m.Size != int64(len(mailText(0))) || len(m.Receipts) != 2 || !m.ReceivedAt.Equal(epoch) {
			t.Errorf("%s: %+v", id, m)
		}
		if m.Subject != "Grüße 0" || len(m.Headers) != 2 || m.Headers[1] != (api.Header{Name: "From", Value: "a@x.example"}) || m.Problem != "" {
			t.Errorf("%s: subject %q, headers %v, problem %q", id, m.Subject, m.Headers, m.Problem)
		}
	}
	n.fake.damagedAt[first.Hash] = 3
	var m api.Message
	n.get("/api/v1/messages/"+hash).json(http.StatusOK, &m)
	if len(m.Receipts) != 2 || len(m.Headers) != 0 || !strings.Contains(m.Problem, "corrupt") {
		t.Errorf("damaged: %+v", m)
	}
}

// report makes a journal report as Exchange writes them.
func report(inner, sender string, to ...string) (string, record.Envelope) {
	var b strings.Builder
	b.WriteString("From: journal@x.example\r\nSubject: outer\r\nX-MS-Journal-Report:\r\nMIME-Version: 1.0\r\n" +
		"Content-Type: multipart/mixed; boundary=\"b1\"\r\n\r\n--b1\r\nContent-Type: text/plain\r\n\r\nSender: " + sender + "\r\n")
	j := &record.Journal{Inner: record.Hash(sha256.Sum256([]byte(inner))), InnerSize: int64(len(inner)), Sender: sender, Subject: "of the report"}
	for _, a := range to {
		b.WriteString("To: " + a + "\r\n")
		j.Recipients = append(j.Recipients, record.JournalRecipient{Address: a, Role: "To"})
	}
	b.WriteString("\r\n--b1\r\nContent-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n" +
		base64.StdEncoding.EncodeToString([]byte(inner)) + "\r\n--b1--\r\n")
	return b.String(), record.Envelope{From: "journal@x.example", To: []string{"archive@x.example"}, Connector: "journal", Journal: j}
}

func TestJournalReports(t *testing.T) {
	n := start(t, nil)
	inner := "From: ann@x.example\r\nSubject: inside\r\n\r\nexact\nbytes\x00"
	var reports []string
	for _, to := range []string{"bob@x.example", "eve@x.example"} {
		raw, e := report(inner, "ann@x.example", to)
		n.fake.add(raw, e)
		reports = append(reports, sum(raw))
	}

	for _, id := range []string{sum(inner), sum(inner)[:6]} {
		var m api.Message
		n.get("/api/v1/messages/"+id).json(http.StatusOK, &m)
		if m.SHA256 != sum(inner) || m.Size != int64(len(inner)) || fmt.Sprint(m.Reports) != fmt.Sprint(reports) || len(m.Receipts) != 2 {
			t.Errorf("%s: by the message inside: %+v", id, m)
		}
		if m.Subject != "inside" || !m.Receipts[0].ReceivedAt.Before(m.Receipts[1].ReceivedAt) {
			t.Errorf("%s: subject %q, receipts %+v", id, m.Subject, m.Receipts)
		}
		raw := n.get("/api/v1/messages/" + id + "/raw").want(http.StatusOK)
		if string(raw.body) != inner || raw.Header.Get("ETag") != `"`+sum(inner)+`"` {
			t.Errorf("%s: raw %q, ETag %s", id, raw.body, raw.Header.Get("ETag"))
		}
	}

	var m api.Message
	n.get("/api/v1/messages/"+reports[0]).json(http.StatusOK, &m)
	if m.SHA256 != reports[0] || m.Subject != "inside" || len(m.Reports) != 0 || m.Receipts[0].Journal.InnerSHA256 != sum(inner) {
		t.Errorf("by the report: %+v", m)
	}
	if raw := n.get("/api/v1/messages/" + reports[0] + "/raw").want(http.StatusOK); sum(string(raw.body)) != reports[0] {
		t.Error("the report's bytes are not as received")
	}
	_, l := n.page(url.Values{"subject": {"true"}})
	if l.Messages[0].Subject != "of the report" {
		t.Errorf("subject in the list: %q", l.Messages[0].Subject)
	}
}

// TestReceivedAtIsTheFirst: further receipts do not make a message newer.
func TestReceivedAtIsTheFirst(t *testing.T) {
	n := start(t, nil)
	n.fake.add(mailText(0), envelope("a@x.example"))
	n.fake.add(mailText(0), envelope("a@x.example"))
	_, l := n.page(url.Values{})
	if len(l.Messages) != 1 || !l.Messages[0].ReceivedAt.Equal(epoch.Truncate(time.Second)) {
		t.Errorf("%+v", l)
	}
}
