package httpd

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"chainmail/archive"
	"chainmail/archive/record"
)

// rawMessage answers with the bytes whose SHA-256 the ID names: the message as
// it was received, or, for the SHA-256 of a message inside journal reports,
// that message.
func (s *Server) rawMessage(w http.ResponseWriter, r *http.Request) error {
	it, err := s.find(r.PathValue("id"))
	if err != nil {
		return err
	}
	etag := strconv.Quote(it.hash.String())
	if matches(r.Header.Values("If-None-Match"), etag) {
		w.Header().Set("ETag", etag)
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	begin := func() {
		h := w.Header()
		h.Set("ETag", etag)
		h.Set("Content-Type", "message/rfc822")
		h.Set("Content-Length", strconv.FormatInt(it.size, 10))
		h.Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", it.hash.String()+".eml"))
		h.Set("Cache-Control", "private, no-cache")
		w.WriteHeader(http.StatusOK)
	}
	if r.Method == http.MethodHead {
		begin()
		return nil
	}
	var inside *record.Journal
	if len(it.reports) > 0 {
		inside = it.journal()
	}
	body, err := s.open(it, inside)
	if err != nil {
		return err
	}
	defer body.Close()
	return copyChecked(w, body, it, begin)
}

// matches reports whether an If-None-Match header lists etag (RFC 9110
// 13.1.2; the comparison is the weak one).
func matches(headers []string, etag string) bool {
	for _, h := range headers {
		for tag := range strings.SplitSeq(h, ",") {
			if tag = strings.TrimSpace(tag); tag == "*" || strings.TrimPrefix(tag, "W/") == etag {
				return true
			}
		}
	}
	return false
}

// copyChunk is how much of a body is held back until what follows was read.
const copyChunk = 64 << 10

// copyChecked copies the body of an item to w, calling begin before the first
// byte. It writes a chunk only after the next one was read, and the last one
// only after the body ended without an error and with the right length: so a
// client that got all the bytes got the right ones, and damage in a small
// message is known before begin.
func copyChecked(w io.Writer, body io.Reader, it item, begin func()) error {
	size := min(it.size+1, copyChunk) // +1: a short body ends within the first chunk
	held, next := make([]byte, size), make([]byte, size)
	var begun bool
	var read int64
	n, ended, err := readChunk(body, held)
	for err == nil {
		read += int64(n)
		var following int
		var last bool
		if !ended {
			following, last, err = readChunk(body, next)
		}
		if err == nil && (read+int64(following) > it.size || ended && read != it.size) {
			err = fmt.Errorf("%w: message %s: its receipt says %d bytes, and that is not what is stored", archive.ErrCorrupt, it.hash, it.size)
		}
		if err != nil {
			break
		}
		if !begun {
			begin()
			begun = true
		}
		if _, err := w.Write(held[:n]); err != nil || ended {
			return err
		}
		held, next, n, ended = next, held, following, last
	}
	return err
}

// readChunk fills p, and reports whether the body ended.
func readChunk(body io.Reader, p []byte) (n int, ended bool, err error) {
	n, err = io.ReadFull(body, p)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return n, true, nil
	}
	return n, false, err
}
