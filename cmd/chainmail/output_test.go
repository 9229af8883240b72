package main

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"chainmail/node/api"
)

// fakeNode answers like a node, with what the test wants.
type fakeNode struct {
	status   api.Status
	messages []api.Message
	verify   []api.VerifyEvent
	asked    []string
}

func (f *fakeNode) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.asked = append(f.asked, r.Method+" "+r.URL.RequestURI())
	path, _ := strings.CutPrefix(r.URL.Path, api.Prefix)
	answer := func(v any) { _ = json.NewEncoder(w).Encode(v) }
	switch {
	case path == "/status":
		answer(f.status)
	case path == "/messages":
		messages := slices.Clone(f.messages)
		if r.URL.Query().Get("order") == "newest" {
			slices.Reverse(messages)
		}
		answer(api.MessageList{Messages: messages})
	case len(f.messages) > 0 && path == "/messages/"+f.messages[0].SHA256[:8]:
		answer(f.messages[0])
	case path == "/tokens" && r.Method == http.MethodGet:
		answer(api.TokenList{Tokens: []api.Token{
			{ID: "1bf13b8a9c0d7e61", Name: "backup", Scope: "read", CreatedAt: received, ExpiresAt: received.AddDate(100, 0, 0)},
			{ID: "7730aa01bb02cc03", Name: "evil \x1b[2J", Scope: "cluster", CreatedAt: received},
			{ID: "00ff00ff00ff00ff", Name: "old", Scope: "read", CreatedAt: received, ExpiresAt: time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)},
		}})
	case path == "/tokens":
		var asked api.TokenRequest
		_ = json.NewDecoder(r.Body).Decode(&asked)
		answer(api.Token{ID: "1bf13b8a9c0d7e61", Name: asked.Name, Scope: asked.Scope, CreatedAt: received, ExpiresAt: asked.ExpiresAt, Secret: "chainmail-api-1.secret"})
	case path == "/verify":
		for _, ev := range f.verify {
			answer(ev)
		}
	default:
		w.WriteHeader(http.StatusNotFound)
		answer(api.Error{Error: "00ff: no such message", Hint: "'chainmail list' shows them"})
	}
}

var received = time.Date(2026, 11, 23, 15, 4, 18, 0, time.UTC)

// start serves the fake node and returns its socket.
func (f *fakeNode) start(t *testing.T) string { return serveFake(t, f) }

func serveFake(t *testing.T, h http.Handler) string {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "fake")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "admin.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return socket
}

func newFakeNode() *fakeNode {
	hash := func(digit string) string { return strings.Repeat(digit, 64) }
	return &fakeNode{
		status: api.Status{
			Node: "archive-1", Version: "v0.1.0", Store: "4f2a9c1be0d37786", State: api.StateActive,
			StartedAt: received.AddDate(0, 0, -3), DataDir: "/var/lib/chainmail",
			Receipts: 1234567, Messages: 1200001, RawBytes: 5 << 40 / 3, StoredSize: 700 << 30,
			Disk: api.Disk{Free: 800 << 30, MinFree: 1 << 30}, Memory: api.Memory{InFlight: 3 << 20, Limit: 128 << 20},
			Scrub: api.Scrub{StartedAt: received, FinishedAt: received.Add(-24 * time.Hour), Checked: 1000, Total: 1234567},
			Listeners: []api.Listener{
				{Name: "smtp", Kind: "smtp", Address: "[::]:25", Connections: 12},
				{Name: "local", Kind: "lmtp", Address: "unix:/run/chainmail/lmtp", Connections: 1},
			},
		},
		messages: []api.Message{
			{
				SHA256: hash("a"), Size: 12_345, ReceivedAt: received, Subject: "Plain \x1b]0;owned\x07and \u202esimple",
				Receipts: []api.Receipt{
					{Position: "4f2a9c1be0d37786:1", ReceivedAt: received, From: "ann@example.com", To: []string{"bob@example.com"}, Client: "192.0.2.1:40312", Helo: "mx.example.com", TLS: "TLS1.3 TLS_AES_128_GCM_SHA256", User: "postfix", Connector: "smtp"},
					{Position: "4f2a9c1be0d37786:7", ReceivedAt: received.Add(time.Minute), From: "", To: []string{"bob@example.com", "carl@example.com"}, Connector: "import"},
				},
				Headers: []api.Header{{Name: "Subject", Value: "Plain \x1b]0;owned\x07and simple"}, {Name: "X-Long-Header-Name-That-Goes-On", Value: "1"}},
			},
			{
				SHA256: hash("b"), Size: 150 << 20, ReceivedAt: received.Add(time.Hour), Subject: "日本語の件名",
				Receipts: []api.Receipt{{
					Position: "4f2a9c1be0d37786:2", ReceivedAt: received.Add(time.Hour), From: "", To: []string{"journal@archive.example.com"}, Client: "192.0.2.2:25", Connector: "exchange",
					Journal: &api.Journal{
						InnerSHA256: hash("c"), InnerSize: 149 << 20, Sender: "a-very-long-sender-address@subdomain.example.com", Subject: "日本語の件名", MessageID: "<1@example.com>",
						Recipients: []api.JournalRecipient{{Address: "dora@example.com", Role: "To"}, {Address: "emil@example.com", Role: "Bcc", Expanded: "all@example.com"}},
					},
				}},
			},
		},
		verify: []api.VerifyEvent{
			{Total: 3},
			{Checked: 2, Total: 3, Bytes: 2048, Bad: 1, Finding: &api.Finding{Position: "4f2a9c1be0d37786:2", SHA256: hash("b"), Problem: "the stored bytes have another SHA-256", FoundAt: received}},
			{Checked: 3, Total: 3, Bytes: 3072, Bad: 1, Done: true},
		},
	}
}

var uptime = regexp.MustCompile(`\(-?[0-9]+[dhms][-0-9dhms]*\)`)

func TestHumanOutput(t *testing.T) {
	broken := newFakeNode()
	broken.status.State, broken.status.Reason = api.StateFull, "disk is nearly full"
	broken.status.Scrub.Findings = []api.Finding{{Position: "4f2a9c1be0d37786:2", Problem: "the stored bytes have another SHA-256", FoundAt: received}}
	whole := newFakeNode()
	whole.verify = []api.VerifyEvent{{Checked: 3, Total: 3, Bytes: 3072, Done: true}}
	reports := newFakeNode()
	reports.messages = reports.messages[1:]
	empty := newFakeNode()
	empty.messages = empty.messages[:0:0]

	for _, test := range []struct {
		name string
		node *fakeNode
		args string
		code int
	}{
		{"status", newFakeNode(), "status", exitOK},
		{"status-trouble", broken, "status", exitFailed},
		{"list", newFakeNode(), "list", exitOK},
		{"list-json", newFakeNode(), "list -o json", exitOK},
		{"list-limit", newFakeNode(), "list --limit 1", exitOK},
		{"list-oldest", newFakeNode(), "list --order oldest --limit 1", exitOK},
		{"list-empty", empty, "list", exitOK},
		{"show", newFakeNode(), "show aaaaaaaa", exitOK},
		{"show-report", reports, "show bbbbbbbb", exitOK},
		{"show-unknown", newFakeNode(), "show 00ff", exitFailed},
		{"token-list", newFakeNode(), "token list", exitOK},
		{"token-api", newFakeNode(), "token api --name backup", exitOK},
		{"token-api-cluster", newFakeNode(), "token api --name balancer --scope cluster --expires 2126-01-31", exitOK},
		{"verify-bad", newFakeNode(), "verify", exitFailed},
		{"verify-bad-json", newFakeNode(), "verify -o json", exitFailed},
		{"verify-whole", whole, "verify", exitOK},
	} {
		t.Run(test.name, func(t *testing.T) {
			code, stdout, stderr := runCommand(t, append(strings.Fields(test.args), "--socket", test.node.start(t))...)
			if code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			stdout = uptime.ReplaceAllString(stdout, "(UPTIME)")
			golden(t, filepath.Join("testdata", "output", test.name+".txt"), "$ chainmail "+test.args+"\n"+stdout+"--- stderr\n"+stderr)
		})
	}
}

func TestSelectionReachesTheNode(t *testing.T) {
	f := newFakeNode()
	code, _, stderr := runCommand(t, "list", "--since", "2026-11-01", "--until", "2026-11-23T12:00:00+01:00", "--from", "ann@example.com", "--to", "example.com", "--after", "4f2a9c1be0d37786:1", "--limit", "5", "--socket", f.start(t))
	want := "GET /api/v1/messages?after=4f2a9c1be0d37786%3A1&from=ann%40example.com&limit=6&order=newest&since=2026-11-01T00%3A00%3A00Z&subject=true&to=example.com&until=2026-11-23T11%3A00%3A00Z"
	if code != exitOK || f.asked[0] != want {
		t.Errorf("exit code %d %s, asked %s\nwant %s", code, stderr, f.asked[0], want)
	}
}

func TestRefusedCommandLines(t *testing.T) {
	t.Setenv("CHAINMAIL_DATA_DIR", "/nonexistent/chainmail")
	var got strings.Builder
	for _, line := range []string{
		"lsit", "config chekc", "list --foo", "list --since yesterday", "list --limit -1", "list -o xml", "list --order size", "list extra",
		"get", "get a b", "export out.mbox", "export --format tar", "import", "token api --expires soon", "token api --scope write",
		"verify --all abcd", "load", "load --target localhost:25", "load --size big --target localhost:25",
		"list", "verify", "import /nonexistent/mail", "import --mbox fancy /nonexistent/mail", "load --check /nonexistent/list",
		"node --config /nonexistent/chainmail.yaml",
	} {
		code, stdout, stderr := runCommand(t, strings.Fields(line)...)
		if stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "chainmail: ") {
			t.Errorf("%s: not one line on standard error: %q %q", line, stdout, stderr)
		}
		got.WriteString("$ chainmail " + line + "\n" + stderr + "exit code " + string(rune('0'+code)) + "\n\n")
	}
	golden(t, "testdata/output/refused.txt", got.String())
}

func TestInstant(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]string{
		"2026-01-31":                "2026-01-31T00:00:00Z",
		"2026-01-31T08:00:00+02:00": "2026-01-31T06:00:00Z",
		"2026-01-31 08:30":          "2026-01-31T08:30:00Z",
		"90m":                       "2026-11-23T10:30:00Z",
		"7d":                        "2026-11-16T12:00:00Z",
	} {
		i := instant{now: func() time.Time { return now }}
		if err := i.Set(text); err != nil || i.String() != want {
			t.Errorf("%s: got %s, %v; want %s", text, i.String(), err, want)
		}
	}
	for _, text := range []string{"", "7", "yesterday", "-1h", "2026-13-01"} {
		i := instant{now: time.Now}
		if err := i.Set(text); err == nil {
			t.Errorf("%q was taken as %s", text, i.String())
		}
	}
}

func TestJSONCannotSteerATerminal(t *testing.T) {
	const text = "\u009b31m \x1b[2J \u202e \U000e0041 <&> \u65e5"
	var b strings.Builder
	if err := printJSON(&b, text); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsFunc(strings.TrimSuffix(b.String(), "\n"), steers) {
		t.Errorf("printed %q", b.String())
	}
	var back string
	if err := json.Unmarshal([]byte(b.String()), &back); err != nil || back != text {
		t.Errorf("read back %q, %v", back, err)
	}
}

func TestTextForTerminals(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                   "plain",
		"a\x1b[31mred\x07":        "a\ufffd[31mred\ufffd",
		"two\r\nlines\u2028three": "two\ufffd\ufffdlines\ufffdthree",
		"\u202ereversed\u200b":    "\ufffdreversed\ufffd",
		"tab\tbed":                "tab bed",
		"bad \xff utf-8":          "bad \ufffd utf-8",
		"c1 \u009b31m":            "c1 \ufffd31m",
		"żółw 日本":                 "żółw 日本",
	} {
		if got := sanitize(in); got != want {
			t.Errorf("sanitize(%q) = %q, want %q", in, got, want)
		}
	}
	if got := truncate("日本語の件名", 7); got != "日本語…" || columns(got) != 7 {
		t.Errorf("truncate gave %q of %d columns", got, columns(got))
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 10 << 10: "10 KiB", 1<<20 - 1: "1.0 MiB", 1 << 40: "1.0 TiB", 1 << 62: "4096 PiB"} {
		if got := humanSize(n); got != want {
			t.Errorf("humanSize(%d) = %s, want %s", n, got, want)
		}
	}
}

func TestTableKeepsToTheWidth(t *testing.T) {
	var b strings.Builder
	rows := table{width: 40}
	rows.add("ID", "SUBJECT")
	rows.add("aaaaaaaaaaaa", strings.Repeat("long subject ", 10))
	if err := rows.print(&b); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		if n := columns(strings.TrimRight(line, "\n")); n > 40 {
			t.Errorf("%d columns: %q", n, line)
		}
	}
}
