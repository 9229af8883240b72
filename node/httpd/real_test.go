package httpd_test

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"chainmail/archive"
	"chainmail/archive/record"
	"chainmail/node/api"
	"chainmail/node/httpd"
)

// TestRealArchive asks for everything once from a real archive, whose answers
// the harness holds against the description.
func TestRealArchive(t *testing.T) {
	a, err := archive.Open(archive.Options{Dir: "archive", Disk: archive.NewDisk(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	n := start(t, func(o *httpd.Options) {
		o.Archive = a
		o.Begin = func(ctx context.Context) (httpd.Draft, error) { return a.NewDraft(ctx), a.Accepting() }
	})
	for i := range 3 {
		n.admin("POST", "/api/v1/messages", mailText(i)).want(http.StatusCreated)
		n.admin("POST", "/api/v1/messages", mailText(i)).want(http.StatusOK)
	}
	inner := "From: ann@x.example\r\nSubject: inside\r\n\r\nexact"
	for _, to := range []string{"bob@x.example", "eve@x.example"} {
		raw, e := report(inner, "ann@x.example", to)
		commit(t, a, raw, e)
	}

	var l api.MessageList
	n.get("/api/v1/messages?limit=2&subject=true").json(http.StatusOK, &l)
	if len(l.Messages) != 2 || l.Messages[1].Subject != "Grüße 1" || l.Next == "" {
		t.Errorf("first page: %+v", l)
	}
	var second api.MessageList
	n.get("/api/v1/messages?to=eve@x.example&after="+l.Next).json(http.StatusOK, &second)
	if len(second.Messages) != 1 || second.Messages[0].Receipts[0].Journal == nil || second.Next != "" {
		t.Errorf("second page: %+v", second)
	}
	var m api.Message
	n.get("/api/v1/messages/"+sum(inner)[:10]).json(http.StatusOK, &m)
	if m.SHA256 != sum(inner) || len(m.Reports) != 2 || len(m.Receipts) != 2 || m.Subject != "inside" || m.Problem != "" {
		t.Errorf("by the message inside: %+v", m)
	}
	if raw := n.get("/api/v1/messages/" + sum(inner) + "/raw").want(http.StatusOK); string(raw.body) != inner {
		t.Errorf("the message inside is %q", raw.body)
	}
	var st api.Status
	n.get("/api/v1/status").json(http.StatusOK, &st)
	if st.Receipts != 5 || st.Messages != 5 || st.Store != a.Store().String() {
		t.Errorf("status %+v", st)
	}
	if r := n.admin("POST", "/api/v1/verify", "").want(http.StatusOK); !strings.Contains(string(r.body), `"checked":5,"total":5`) {
		t.Errorf("verify: %s", r.body)
	}
	for id, code := range map[string]int{"zzzz": http.StatusBadRequest, "abc": http.StatusBadRequest, sum("absent"): http.StatusNotFound, st.Store + ":99": http.StatusNotFound} {
		n.get("/api/v1/messages/"+id).refused(code, id)
	}
}

func commit(t *testing.T, a *archive.Archive, raw string, e record.Envelope) {
	t.Helper()
	d := a.NewDraft(t.Context())
	defer d.Discard()
	if _, err := d.Write([]byte(raw)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Commit(e); err != nil {
		t.Fatal(err)
	}
}
