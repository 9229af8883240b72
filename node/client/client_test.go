package client_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chainmail/archive"
	"chainmail/archive/mailbox"
	"chainmail/archive/record"
	"chainmail/node/api"
	"chainmail/node/client"
	"chainmail/node/httpd"
)

// node is a server over a real archive on a disk in memory.
type node struct {
	*client.Client
	t       *testing.T
	archive *archive.Archive
	socket  string
	tcp     string
	stop    func()
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "client")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func start(t *testing.T, change func(*httpd.Options)) *node {
	t.Helper()
	dir := shortDir(t)
	n := &node{t: t, socket: httpd.DefaultSocket(dir)}
	var err error
	n.archive, err = archive.Open(archive.Options{
		Dir: "archive", Disk: archive.NewDisk(), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	o := httpd.Options{
		Archive: n.archive, Status: func() api.Status { return api.Status{Node: "n1", State: api.StateActive} },
		Begin: func(ctx context.Context) (httpd.Draft, error) {
			return n.archive.NewDraft(ctx), n.archive.Accepting()
		},
		Address: "127.0.0.1:0", Socket: n.socket, Tokens: &fakeTokens{}, MaxMessageSize: 20 << 20,
		Logger: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(), Grace: 5 * time.Second,
	}
	if change != nil {
		change(&o)
	}
	server, err := httpd.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.tcp = "http://" + server.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx); close(ended) }()
	n.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	n.Client = client.New(n.socket)
	t.Cleanup(func() {
		n.stop()
		n.Close()
		if err := n.archive.Close(); err != nil {
			t.Errorf("closing the archive: %v", err)
		}
	})
	return n
}

func sum(b []byte) string { return record.Hash(sha256.Sum256(b)).String() }

// corpus is mail of many sizes and shapes.
func corpus() [][]byte {
	mails := [][]byte{
		nil, []byte("no header"), []byte("From: a@x.example\r\nTo: b@y.example\r\n\r\nNUL \x00, bare\nLF, no end"),
		bytes.Repeat([]byte("x"), 256<<10), bytes.Repeat([]byte("y"), 256<<10+1), bytes.Repeat([]byte("z"), 9<<20),
	}
	for i := range 60 {
		mails = append(mails, fmt.Appendf(nil, "From: a%d@x.example\r\nSubject: %d\r\n\r\n%s", i, i, strings.Repeat("text ", i*i)))
	}
	return mails
}

func items(mails [][]byte) iter.Seq2[client.Item, error] {
	return func(yield func(client.Item, error) bool) {
		for i, b := range mails {
			it := client.Item{Name: fmt.Sprintf("mail %d", i), Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }}
			if !yield(it, nil) {
				return
			}
		}
	}
}

// sink keeps what is exported, and may fail.
type sink struct {
	hashes []string
	err    error
}

func (s *sink) Has(m mailbox.Meta) bool { return slices.Contains(s.hashes, m.SHA256) }

func (s *sink) Add(m mailbox.Meta, body io.Reader) error {
	b, err := io.ReadAll(body)
	if err := errors.Join(err, s.err); err != nil {
		return err
	}
	if sum(b) != m.SHA256 {
		return errors.New("the sink got other bytes")
	}
	s.hashes = append(s.hashes, m.SHA256)
	return nil
}

func sorted(mails [][]byte) []string {
	var hashes []string
	for _, b := range mails {
		hashes = append(hashes, sum(b))
	}
	slices.Sort(hashes)
	return slices.Compact(hashes)
}

// TestThereAndBack: what is imported comes out of every reading operation
// identical to the byte, and importing again adds nothing.
func TestThereAndBack(t *testing.T) {
	n, ctx := start(t, nil), t.Context()
	mails := corpus()
	mails = append(mails, mails[10], mails[11]) // a source may hold a message twice
	different := uint64(len(mails) - 2)

	var told client.Summary
	first, err := n.Import(ctx, items(mails), 0, func(s client.Summary) { told = s })
	if err != nil || first.Added != different || first.Existing != 2 || first.Failed != 0 {
		t.Fatalf("first import: %+v, %v", first, err)
	}
	if fmt.Sprint(told) != fmt.Sprint(first) {
		t.Errorf("progress ended with %+v, the summary is %+v", told, first)
	}
	again, err := n.Import(ctx, items(mails), 3, nil)
	if err != nil || again.Added != 0 || again.Existing != different+2 || again.Bytes != first.Bytes {
		t.Errorf("second import: %+v, %v", again, err)
	}
	if st, err := n.Status(ctx); err != nil || st.Receipts != different || st.Messages != different || st.Node != "n1" {
		t.Errorf("status %+v, %v", st, err)
	}

	var out sink
	exported, err := n.Export(ctx, client.Query{}, &out, nil)
	if err != nil || exported.Added != different || exported.Failed != 0 {
		t.Errorf("export: %+v, %v", exported, err)
	}
	exported, err = n.Export(ctx, client.Query{}, &out, nil)
	if err != nil || exported.Added != 0 || exported.Existing != different {
		t.Errorf("second export: %+v, %v", exported, err)
	}
	slices.Sort(out.hashes)
	if !slices.Equal(out.hashes, sorted(mails)) {
		t.Errorf("%d messages came out, %d went in", len(out.hashes), different)
	}

	for m, err := range n.Messages(ctx, client.Query{Limit: 5, Subject: true}) {
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{m.SHA256, m.SHA256[:12], m.Receipts[0].Position} {
			raw, err := n.Raw(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(raw)
			if err := errors.Join(err, raw.Close()); err != nil || sum(b) != m.SHA256 {
				t.Errorf("%s: %v", id, err)
			}
			shown, err := n.Message(ctx, id)
			if err != nil || shown.SHA256 != m.SHA256 || shown.Subject != m.Subject || shown.Problem != "" {
				t.Errorf("%s: %+v, %v", id, shown, err)
			}
		}
	}
	var seen int
	last, err := n.Verify(ctx, func(api.VerifyEvent) { seen++ })
	if err != nil || !last.Done || last.Checked != different || last.Bad != 0 || seen < 2 {
		t.Errorf("verify: %+v, %v, %d lines", last, err, seen)
	}
}

func TestMessagesPages(t *testing.T) {
	n, ctx := start(t, nil), t.Context()
	var mails [][]byte
	for i := range 1203 {
		mails = append(mails, fmt.Appendf(nil, "From: a@x.example\r\n\r\n%d", i))
	}
	if s, err := n.Import(ctx, items(mails), 32, nil); err != nil || s.Added != 1203 {
		t.Fatalf("%+v, %v", s, err)
	}
	for limit, want := range map[int]int{0: 1203, 1: 1, 1000: 1000, 1001: 1001, 5000: 1203} {
		for _, newest := range []bool{false, true} {
			seen, before := map[string]bool{}, time.Time{}
			for m, err := range n.Messages(ctx, client.Query{Limit: limit, Newest: newest, From: "x.example"}) {
				if err != nil {
					t.Fatal(err)
				}
				if !before.IsZero() && m.ReceivedAt.Before(before) != newest {
					t.Fatalf("%v comes after %v with newest %v", m.ReceivedAt, before, newest)
				}
				seen[m.SHA256], before = true, m.ReceivedAt
			}
			if len(seen) != want {
				t.Errorf("limit %d, newest %v: %d messages", limit, newest, len(seen))
			}
		}
	}
	for _, err := range n.Messages(ctx, client.Query{Since: "yesterday"}) {
		if refusal, ok := errors.AsType[*client.Error](err); !ok || refusal.Status != http.StatusBadRequest || !strings.Contains(err.Error(), "2026-01-31") {
			t.Errorf("%v", err)
		}
	}
}

// TestRefusedIDs: what operators read about an ID that names no message says
// the ID once, and once what an ID is.
func TestRefusedIDs(t *testing.T) {
	n := start(t, nil)
	for id, want := range map[string]string{
		"00ff":               `00ff: no such message: an ID is a SHA-256, the first digits of one, or a position: 'chainmail list' shows them`,
		"0000000000000001:1": `0000000000000001:1: no such message: an ID is a SHA-256, the first digits of one, or a position: 'chainmail list' shows them`,
		"zz":                 `"zz": not an ID: want a SHA-256, its first 4 or more digits, or a position such as 4f2a9c1be0d37786:42`,
		"1:1":                `"1:1": not an ID: want a SHA-256, its first 4 or more digits, or a position such as 4f2a9c1be0d37786:42`,
	} {
		if _, err := n.Message(t.Context(), id); err == nil || err.Error() != want {
			t.Errorf("Message(%q):\n got %v\nwant %s", id, err, want)
		}
		if _, err := n.Raw(t.Context(), id); err == nil || err.Error() != want {
			t.Errorf("Raw(%q):\n got %v\nwant %s", id, err, want)
		}
	}
}

func TestTokensOverTCP(t *testing.T) {
	n, ctx := start(t, nil), t.Context()
	made, err := n.MakeToken(ctx, api.TokenRequest{Name: "tests"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.NewTCP(n.tcp+"/", made.Secret)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Status(ctx); err != nil {
		t.Error(err)
	}
	status := func(want int, err error) {
		t.Helper()
		if refusal, ok := errors.AsType[*client.Error](err); !ok || refusal.Status != want {
			t.Errorf("%v, want status %d", err, want)
		}
	}
	_, err = c.Upload(ctx, io.NopCloser(strings.NewReader("x")), 1)
	status(http.StatusForbidden, err)
	_, err = c.Import(ctx, items(corpus()), 0, nil)
	status(http.StatusForbidden, err) // it concerns the node, so the import ends
	if tokens, err := n.Tokens(ctx); err != nil || len(tokens) != 1 || tokens[0].ID != made.ID || tokens[0].Secret != "" {
		t.Errorf("%+v, %v", tokens, err)
	}
	if done, err := n.RevokeToken(ctx, made.ID); err != nil || done.Epoch != 8 {
		t.Error(done, err)
	}
	_, err = c.Status(ctx)
	status(http.StatusUnauthorized, err)
}

// TestNoNode: the words that operators see when nobody answers.
func TestNoNode(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "admin.sock")
	want := fmt.Sprintf("no node is running on %s: start it with 'chainmail node --data-dir %s', or name another with --data-dir or --socket", path, dir)
	c := client.New(path)
	if _, err := c.Status(t.Context()); !errors.Is(err, client.ErrNoNode) || err.Error() != want {
		t.Errorf("no socket:\n got %v\nwant %s", err, want)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	if _, err := c.Status(t.Context()); !errors.Is(err, client.ErrNoNode) || err.Error() != want {
		t.Errorf("stale socket:\n got %v\nwant %s", err, want)
	}
	tcp, err := client.NewTCP("http://127.0.0.1:1", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tcp.Status(t.Context()); !errors.Is(err, client.ErrNoNode) || !strings.Contains(err.Error(), "http://127.0.0.1:1") {
		t.Errorf("TCP: %v", err)
	}
	for _, wrong := range []string{"", "127.0.0.1:8025", "ftp://x", "http://"} {
		if _, err := client.NewTCP(wrong, ""); err == nil {
			t.Errorf("%q is taken as an address", wrong)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Status(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// stub serves h on a socket in place of a node.
func stub(t *testing.T, h http.HandlerFunc) *client.Client {
	t.Helper()
	path := filepath.Join(shortDir(t), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go func() { _ = srv.Serve(l) }()
	c := client.New(path)
	t.Cleanup(func() { c.Close(); _ = srv.Close() })
	return c
}

// TestRawAltered: bytes that are not those asked for are an error, whoever
// altered them.
func TestRawAltered(t *testing.T) {
	text := []byte("the bytes")
	c := stub(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.Contains(r.URL.Path, "short"):
			w.Header().Set("ETag", `"`+sum(text)+`"`)
			w.Header().Set("Content-Length", "100")
		case strings.Contains(r.URL.Path, "altered"):
			w.Header().Set("ETag", `"`+sum([]byte("other"))+`"`)
		case strings.Contains(r.URL.Path, "proper"):
			w.Header().Set("ETag", `"`+sum(text)+`"`)
		}
		_, _ = w.Write(text)
	})
	for id, want := range map[string]string{
		"proper": "", sum(text): "", "altered": "altered", sum([]byte("other")): "altered", "short": "broken off",
	} {
		raw, err := c.Raw(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.ReadAll(raw)
		_ = raw.Close()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", id, err)
		}
		if errors.Is(err, client.ErrAltered) != (want == "altered") {
			t.Errorf("%s: ErrAltered is wrong in %v", id, err)
		}
	}
	if _, err := c.Raw(t.Context(), "nameless"); err == nil {
		t.Error("no ETag, no error")
	}
}

// TestVerifyBrokenOff: a stream without its last line is no success.
func TestVerifyBrokenOff(t *testing.T) {
	for body, want := range map[string]string{
		`{"checked":3,"total":9,"bytes":1,"bad":0}` + "\n":                                "after 3 of 9",
		`{"checked":3,"total":9,"bytes":1,"bad":0,"error":"the disk is gone"}` + "\n":     "the disk is gone",
		`{"checked":3,"total":9,"bytes":1,"bad":0}` + "\n" + `{"checked":4,"total":9,"by`: "after 3 of 9",
	} {
		c := stub(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) })
		if _, err := c.Verify(t.Context(), func(api.VerifyEvent) {}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", body, err)
		}
	}
}

// TestForeignAnswers: what is no node is told apart from one.
func TestForeignAnswers(t *testing.T) {
	c := stub(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = io.WriteString(w, "<html>hello")
			return
		}
		http.Error(w, "<html>"+strings.Repeat("x", 1<<20), http.StatusBadGateway)
	})
	if _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot read the node's answer to /api/v1/status") {
		t.Errorf("%v", err)
	}
	if _, err := c.RevokeToken(t.Context(), "x/y"); err == nil || len(err.Error()) > 200 || !strings.Contains(err.Error(), "502 Bad Gateway") {
		t.Errorf("%v", err)
	}
}
