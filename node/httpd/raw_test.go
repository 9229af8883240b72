package httpd_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestRaw(t *testing.T) {
	n := start(t, nil)
	for _, size := range []int{0, 1, 64<<10 - 1, 64 << 10, 64<<10 + 1, 300 << 10} {
		text := strings.Repeat("x", size)
		r := n.fake.add(text, envelope("a@x.example"))
		path := "/api/v1/messages/" + r.Hash.String() + "/raw"
		got := n.get(path).want(http.StatusOK)
		if string(got.body) != text {
			t.Errorf("size %d: %d bytes came", size, len(got.body))
		}
		for name, want := range map[string]string{
			"Content-Type": "message/rfc822", "X-Content-Type-Options": "nosniff", "Content-Length": fmt.Sprint(size),
			"ETag": `"` + r.Hash.String() + `"`, "Content-Disposition": fmt.Sprintf(`attachment; filename="%s.eml"`, r.Hash),
		} {
			if v := got.Header.Get(name); v != want {
				t.Errorf("size %d: %s is %q, want %q", size, name, v, want)
			}
		}
		head := n.admin("HEAD", path, "").want(http.StatusOK)
		if head.ContentLength != int64(size) || head.Header.Get("ETag") != got.Header.Get("ETag") || len(head.body) != 0 {
			t.Errorf("size %d: HEAD: %v", size, head.Header)
		}
		for match, code := range map[string]int{
			`"` + r.Hash.String() + `"`:            http.StatusNotModified,
			`"other", W/"` + r.Hash.String() + `"`: http.StatusNotModified,
			"*":                                    http.StatusNotModified,
			`"other"`:                              http.StatusOK,
		} {
			n.admin("GET", path, "", "If-None-Match", match).want(code)
		}
	}
	n.admin("HEAD", "/api/v1/messages/"+sum("absent")+"/raw", "").want(http.StatusNotFound)
}

// TestRawDamaged: a client never gets all bytes of a damaged message. Damage
// within the first chunks is a clear 500; later the connection breaks.
func TestRawDamaged(t *testing.T) {
	n := start(t, nil)
	const size = 300 << 10
	for _, at := range []int{0, 1, 64 << 10, 128<<10 - 1, 128 << 10, size - 1, size} {
		text := fmt.Sprintf("%d", at) + strings.Repeat("x", size)
		text = text[:size]
		r := n.fake.add(text, envelope("a@x.example"))
		n.fake.damagedAt[r.Hash] = at
		got := n.get("/api/v1/messages/" + r.Hash.String() + "/raw")
		if at < 128<<10 {
			got.refused(http.StatusInternalServerError, r.Hash.String(), "corrupt", "chainmail verify")
			if got.Header.Get("ETag") != "" || got.Header.Get("Content-Disposition") != "" {
				t.Errorf("damage at %d: the error has the headers of the message", at)
			}
			continue
		}
		got.want(http.StatusOK)
		if got.bodyErr == nil || len(got.body) >= size {
			t.Errorf("damage at %d: %d bytes came, error %v", at, len(got.body), got.bodyErr)
		}
	}
}

// TestRawOfAnotherLength: receipt and stored bytes must agree.
func TestRawOfAnotherLength(t *testing.T) {
	n := start(t, nil)
	for _, size := range []int{10, 64 << 10, 300 << 10} {
		for _, change := range []int64{-1, 1} {
			r := n.fake.add(strings.Repeat("y", size+int(change)), envelope("a@x.example"))
			n.fake.messages[r.Hash].Size += change
			got := n.get("/api/v1/messages/" + r.Hash.String() + "/raw")
			if got.StatusCode == http.StatusOK && (!errors.Is(got.bodyErr, io.ErrUnexpectedEOF) || len(got.body) >= size+int(change)) {
				t.Errorf("size %d%+d: %d bytes came, error %v", size, change, len(got.body), got.bodyErr)
			}
		}
	}
}

// TestRawOfAnotherInnerMessage: what is taken out of a report is checked
// against what was archived.
func TestRawOfAnotherInnerMessage(t *testing.T) {
	n := start(t, nil)
	raw, e := report("Subject: one\r\n\r\n1", "a@x.example")
	other, _ := report("Subject: two\r\n\r\n2", "a@x.example")
	r := n.fake.add(raw, e)
	n.fake.bodies[r.Hash] = []byte(other)
	n.get("/api/v1/messages/"+e.Journal.Inner.String()+"/raw").refused(http.StatusInternalServerError, "corrupt", e.Journal.Inner.String())
}
