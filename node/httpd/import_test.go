package httpd_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"chainmail/archive"
	"chainmail/node/api"
	"chainmail/node/httpd"
)

func TestImport(t *testing.T) {
	n := start(t, nil)
	text := "Return-Path: <bounce@x.example>\r\nFrom: a@x.example\r\nTo: B <b@y.example>, c@y.example\nCc: d@z.example\r\n\r\nNUL \x00 and bare\nLF, no end"
	var first, again api.Accepted
	r := n.admin("POST", "/api/v1/messages", text)
	r.json(http.StatusCreated, &first)
	if first.SHA256 != sum(text) || first.Existing || r.Header.Get("Location") != "/api/v1/messages/"+sum(text) {
		t.Errorf("%+v, Location %s", first, r.Header.Get("Location"))
	}
	n.admin("POST", "/api/v1/messages", text).json(http.StatusOK, &again)
	if !again.Existing || again.Position != first.Position || len(n.fake.messages) != 1 {
		t.Errorf("again: %+v", again)
	}
	if raw := n.get("/api/v1/messages/" + sum(text) + "/raw").want(http.StatusOK); string(raw.body) != text {
		t.Errorf("came back as %q", raw.body)
	}
	var m api.Message
	n.get("/api/v1/messages/"+sum(text)).json(http.StatusOK, &m)
	e := m.Receipts[0]
	if e.From != "bounce@x.example" || fmt.Sprint(e.To) != "[b@y.example c@y.example d@z.example]" || e.Connector != "import" || e.Client != "" {
		t.Errorf("receipt %+v", e)
	}
}

// TestImportOfOddMail: no header, no body, nothing at all, and a header that
// is longer than what is looked at.
func TestImportOfOddMail(t *testing.T) {
	n := start(t, nil)
	for _, text := range []string{"", "no header", "\r\n\r\n", "From: a@x.example", strings.Repeat("X: y\r\n", 400_000) + "\r\nbody"} {
		n.admin("POST", "/api/v1/messages", text).want(http.StatusCreated)
		if got := n.get("/api/v1/messages/" + sum(text) + "/raw").want(http.StatusOK); string(got.body) != text {
			t.Errorf("%d bytes came back as %d", len(text), len(got.body))
		}
	}
}

// TestImportOfHeldInnerMessage: what a journal report holds is not archived a
// second time.
func TestImportOfHeldInnerMessage(t *testing.T) {
	n := start(t, nil)
	inner := "Subject: inside\r\n\r\nx"
	raw, e := report(inner, "a@x.example")
	r := n.fake.add(raw, e)
	var a api.Accepted
	n.admin("POST", "/api/v1/messages", inner).json(http.StatusOK, &a)
	if !a.Existing || a.Position != r.Position.String() {
		t.Errorf("%+v", a)
	}
}

// TestImportsOfOneMessageAtOnce: of many simultaneous uploads of the same
// bytes one is archived.
func TestImportsOfOneMessageAtOnce(t *testing.T) {
	n := start(t, nil)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() { n.admin("POST", "/api/v1/messages", mailText(1)) })
	}
	wg.Wait()
	if got := n.fake.seq; got != 1 {
		t.Errorf("%d receipts", got)
	}
}

func TestImportRefusals(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*fakeArchive)
		body   string
		code   int
		words  []string
		retry  string
	}{
		{"full before", func(f *fakeArchive) { f.beginErr = archive.ErrDiskFull }, "x", http.StatusInsufficientStorage, []string{"disk", "free space", "repeat"}, ""},
		{"full while writing", func(f *fakeArchive) { f.writeErr = archive.ErrDiskFull }, "x", http.StatusInsufficientStorage, []string{"free space"}, ""},
		{"full at the end", func(f *fakeArchive) { f.commitErr = archive.ErrDiskFull }, "x", http.StatusInsufficientStorage, []string{"free space"}, ""},
		{"busy", func(f *fakeArchive) { f.writeErr = archive.ErrBusy }, "x", http.StatusServiceUnavailable, []string{"memory"}, "2"},
		{"closed", func(f *fakeArchive) { f.commitErr = archive.ErrClosed }, "x", http.StatusServiceUnavailable, []string{"shutting down"}, ""},
		{"broken", func(f *fakeArchive) { f.commitErr = errDisk }, "x", http.StatusInternalServerError, []string{"log"}, ""},
		{"unreadable index", func(f *fakeArchive) { f.readErr = errDisk }, "x", http.StatusInternalServerError, []string{"log"}, ""},
		{"too large", func(*fakeArchive) {}, strings.Repeat("x", 1001), http.StatusRequestEntityTooLarge, []string{"1000"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := start(t, func(o *httpd.Options) { o.MaxMessageSize = 1000 })
			c.change(n.fake)
			r := n.admin("POST", "/api/v1/messages", c.body)
			r.refused(c.code, c.words...)
			if got := r.Header.Get("Retry-After"); got != c.retry {
				t.Errorf("Retry-After %q", got)
			}
			if len(n.fake.messages) != 0 {
				t.Error("it was archived")
			}
		})
	}
}

// dial opens a bare connection to the socket.
func (n *node) dial() net.Conn {
	n.t.Helper()
	c, err := net.Dial("unix", httpd.DefaultSocket(n.dir))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		n.t.Fatal(err)
	}
	return c
}

// bare sends bytes and reads one answer.
func (n *node) bare(c net.Conn, method, bytes string) reply {
	n.t.Helper()
	if bytes != "" {
		if _, err := io.WriteString(c, bytes); err != nil {
			n.t.Fatal(err)
		}
	}
	req, err := http.NewRequest(method, "http://x/api/v1/messages", nil)
	if err != nil {
		n.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), req)
	if err != nil {
		n.t.Fatal(err)
	}
	defer resp.Body.Close()
	r := reply{t: n.t, Response: resp}
	if r.body, err = io.ReadAll(resp.Body); err != nil {
		n.t.Fatal(err)
	}
	described(n.t).check(n.t, r)
	return r
}

// TestImportTooLargeUnannounced: the limit also holds when no length is given.
func TestImportTooLargeUnannounced(t *testing.T) {
	n := start(t, func(o *httpd.Options) { o.MaxMessageSize = 10 })
	n.bare(n.dial(), "POST", "POST /api/v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n0\r\n\r\n").
		refused(http.StatusRequestEntityTooLarge, "10 bytes")
}

// TestImportTruncated: half a message is none.
func TestImportTruncated(t *testing.T) {
	n := start(t, nil)
	c := n.dial()
	if _, err := io.WriteString(c, "POST /api/v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nFrom: a@x.example\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	n.bare(c, "POST", "").refused(http.StatusBadRequest, "Content-Length")
	if len(n.fake.messages) != 0 {
		t.Error("it was archived")
	}
}

// TestImportStalled: a client that stops sending is cut off.
func TestImportStalled(t *testing.T) {
	n := start(t, func(o *httpd.Options) { o.Stall = 100 * time.Millisecond })
	n.bare(n.dial(), "POST", "POST /api/v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nFrom: a@x.example\r\n").
		refused(http.StatusRequestTimeout, "stopped arriving")
}

// TestReaderStalls: a client that takes no bytes does not hold the server for
// ever.
func TestReaderStalls(t *testing.T) {
	n := start(t, func(o *httpd.Options) { o.Stall = 100 * time.Millisecond })
	r := n.fake.add(strings.Repeat("x", 8<<20), envelope("a@x.example"))
	c := n.dial()
	if _, err := fmt.Fprintf(c, "GET /api/v1/messages/%s/raw HTTP/1.1\r\nHost: x\r\n\r\n", r.Hash); err != nil {
		t.Fatal(err)
	}
	if err := n.stop(); err != nil { // returns within the grace time only if the handler was cut off
		t.Fatal(err)
	}
	if got, err := io.Copy(io.Discard, c); got >= 8<<20 {
		t.Errorf("%d bytes, error %v", got, err)
	}
}
