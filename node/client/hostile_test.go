package client_test

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"chainmail/node/api"
	"chainmail/node/client"
)

// hostile is a member in other hands, and a client that follows the cluster by it.
func hostile(t *testing.T, answer http.HandlerFunc) *client.Client {
	t.Helper()
	own := newCA(t)
	s := httptest.NewUnstartedServer(answer)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{own.node("a", api.NodeName)}}
	s.StartTLS()
	t.Cleanup(s.Close)
	c, err := client.NewRemote(s.Listener.Addr().String(), api.Secret{CA: own.hash()}.Text(api.APITokenPrefix))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// TestNoRedirections: a client asks whom it was told to ask. It tells nobody
// else its token, and asks nobody else in the name of its machine.
func TestNoRedirections(t *testing.T) {
	var asked atomic.Bool
	inside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Store(true)
		_, _ = io.WriteString(w, `{"id":"abc"}`)
	}))
	defer inside.Close()
	c := hostile(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, inside.URL, http.StatusFound) })
	if _, err := c.Cluster(t.Context()); err == nil || !strings.Contains(err.Error(), "was answered 302") {
		t.Errorf("%v", err)
	}
	if _, err := c.CA(t.Context()); err == nil || asked.Load() {
		t.Errorf("%v, asked: %v", err, asked.Load())
	}
}

// TestEndlessAnswers: an answer without an end costs no more than its bound.
func TestEndlessAnswers(t *testing.T) {
	for name, text := range map[string][2]string{
		"a text": {`{"id":"`, "x"}, "members": {`{"members":[{}`, ",{}"}, "behind the answer": {`{"id":"a"}`, " "},
	} {
		t.Run(name, func(t *testing.T) {
			var sent atomic.Int64
			c := hostile(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.WriteString(w, text[0])
				piece := []byte(strings.Repeat(text[1], 60_000/len(text[1])))
				for r.Context().Err() == nil && sent.Load() < 1<<30 {
					n, err := w.Write(piece)
					if sent.Add(int64(n)); err != nil {
						return
					}
				}
			})
			began := time.Now()
			if _, err := c.Cluster(t.Context()); err == nil || !strings.Contains(err.Error(), "too large") {
				t.Errorf("%v", err)
			}
			if sent.Load() > 32<<20 {
				t.Errorf("it took %d bytes, and %v", sent.Load(), time.Since(began))
			}
		})
	}
}
