package httpd

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
)

// maxRequest bounds the JSON of a request, in bytes.
const maxRequest = 64 << 10

// readJSON reads a request's body into v. Unknown fields are refused, since a
// mistyped one that is silently ignored would do something else. example is
// what a right one looks like.
func (s *Server) readJSON(w http.ResponseWriter, r *http.Request, v any, example string) error {
	return s.decodeJSON(w, r, v, example, true)
}

// readNewerJSON is readJSON for what other versions of this program send:
// fields that this one does not know are ignored.
func (s *Server) readNewerJSON(w http.ResponseWriter, r *http.Request, v any, example string) error {
	return s.decodeJSON(w, r, v, example, false)
}

func (s *Server) decodeJSON(w http.ResponseWriter, r *http.Request, v any, example string, strict bool) error {
	// upload lifts the deadline at the end: the handler may take its time.
	body := upload{http.MaxBytesReader(w, r.Body, maxRequest), http.NewResponseController(w), s.opts.Stall}
	dec := json.NewDecoder(body)
	if strict {
		dec.DisallowUnknownFields()
	}
	err := dec.Decode(v)
	if err == nil {
		_, err = dec.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = errors.New("there is more than one value")
		}
	}
	return badRequest("cannot read the request: %v", err).hint("send JSON such as %s", example)
}
