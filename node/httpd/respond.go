package httpd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"

	"chainmail/archive"
	"chainmail/node/api"
)

// StatusError is an error that knows its HTTP status and what to tell the
// client. Implementations of this package's interfaces return it to choose
// them.
type StatusError struct {
	Code int    // 409: a change that is refused; 503: no quorum; and so on
	Text string // what failed, with which value
	Hint string // what to do
}

func (e *StatusError) Error() string { return e.Text }

func (e *StatusError) hint(format string, args ...any) *StatusError {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

func badRequest(format string, args ...any) *StatusError {
	return &StatusError{Code: http.StatusBadRequest, Text: fmt.Sprintf(format, args...)}
}

func notFound(format string, args ...any) *StatusError {
	return &StatusError{Code: http.StatusNotFound, Text: fmt.Sprintf(format, args...)}
}

func noToken(why, do string) *StatusError { return &StatusError{http.StatusUnauthorized, why, do} }

// retryAfter is what a client is told to wait, in seconds, when the node has
// no memory for its message.
const retryAfter = 2

// translate is the one place where errors become statuses. One that says what
// to do, by a method Hint, is a refusal.
func translate(err error) *StatusError {
	if p, ok := errors.AsType[*StatusError](err); ok {
		return p
	}
	say := func(code int, hint string) *StatusError {
		return &StatusError{code, err.Error(), hint}
	}
	if hinted, ok := errors.AsType[interface {
		error
		Hint() string
	}](err); ok {
		return say(http.StatusConflict, hinted.Hint())
	}
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLargeProblem(tooLarge.Limit)
	}
	switch {
	case errors.Is(err, archive.ErrNotFound):
		return say(http.StatusNotFound, "an ID is a SHA-256, the first digits of one, or a position: 'chainmail list' shows them")
	case errors.Is(err, archive.ErrAmbiguous):
		return say(http.StatusConflict, "") // the error itself says what to do
	case errors.Is(err, archive.ErrBadID):
		return say(http.StatusBadRequest, "") // so does this one
	case errors.Is(err, archive.ErrDiskFull):
		return say(http.StatusInsufficientStorage, "free space on the disk of the data directory, then repeat: what was added stays")
	case errors.Is(err, archive.ErrBusy):
		return say(http.StatusServiceUnavailable, "repeat later")
	case errors.Is(err, archive.ErrClosed):
		return say(http.StatusServiceUnavailable, "the node is shutting down: start it again, then repeat")
	case errors.Is(err, archive.ErrCorrupt):
		return say(http.StatusInternalServerError, "'chainmail verify' lists all damaged messages")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return say(http.StatusRequestTimeout, "the body stopped arriving: send it again")
	default:
		return say(http.StatusInternalServerError, "the node's log has the details")
	}
}

func tooLargeProblem(limit int64) *StatusError {
	return &StatusError{
		http.StatusRequestEntityTooLarge, fmt.Sprintf("the request is larger than the limit of %d bytes", limit),
		"for messages the limit is the node's largest message size",
	}
}

// fail answers a request with err. When an answer has begun, or the client is
// gone, the connection is broken: nothing else can tell the client.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if m, ok := w.(*meter); ok && m.code != 0 {
		level := slog.LevelDebug // the client went away
		if errors.Is(err, archive.ErrCorrupt) {
			level = slog.LevelError
		}
		s.opts.Logger.Log(r.Context(), level, "HTTP answer broken off", "method", r.Method, "path", r.URL.Path, "err", err)
		panic(http.ErrAbortHandler)
	}
	if errors.Is(err, context.Canceled) && r.Context().Err() != nil {
		panic(http.ErrAbortHandler)
	}
	p := translate(err)
	switch {
	case p.Code == http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Bearer realm="chainmail"`)
	case errors.Is(err, archive.ErrBusy), p.Code == http.StatusTooManyRequests:
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
	case p.Code == http.StatusInternalServerError:
		s.opts.Logger.Error("HTTP request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	if p.Code == http.StatusRequestEntityTooLarge || p.Code == http.StatusRequestTimeout {
		w.Header().Set("Connection", "close") // the rest of the body is not worth reading
	}
	writeJSON(w, p.Code, api.Error{Error: p.Text, Hint: p.Hint})
}

// writeJSON answers with v. A failed write needs no handling: the client is
// gone, and net/http knows.
func writeJSON(w http.ResponseWriter, code int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("httpd: %T cannot be JSON: %v", v, err))
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)+1))
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n'))
}

func (s *Server) logPanic(r *http.Request, p any) {
	s.opts.Logger.Error("HTTP handler panicked", "method", r.Method, "path", r.URL.Path,
		"err", fmt.Sprint(p), "stack", string(debug.Stack()))
}
