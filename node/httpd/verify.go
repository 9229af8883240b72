package httpd

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"chainmail/archive"
	"chainmail/node/api"
)

// progressPeriod is the least time between two lines of progress.
const progressPeriod = 200 * time.Millisecond

// verify reads and checks every message, and streams api.VerifyEvent lines. It
// ends when the client goes away or the server stops: the last line says how.
func (s *Server) verify(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)

	lines := lineWriter{enc: json.NewEncoder(w), control: http.NewResponseController(w)}
	var ev api.VerifyEvent
	lines.write(ev) // the client sees at once that it began
	written := time.Now()
	err := s.opts.Archive.Verify(ctx, func(p archive.Progress) {
		ev.Checked, ev.Total, ev.Bytes, ev.Finding = p.Checked, p.Total, p.Bytes, nil
		if p.Finding != nil {
			f := apiFinding(*p.Finding)
			ev.Finding = &f
			ev.Bad++
		}
		if now := time.Now(); ev.Finding != nil || now.Sub(written) >= progressPeriod {
			written = now
			lines.write(ev)
		}
		select {
		case <-s.stopping:
			cancel(errors.New("the node is shutting down"))
		default:
			if lines.err != nil {
				cancel(lines.err)
			}
		}
	})
	ev.Finding = nil
	switch {
	case err == nil:
		ev.Done = true
	case context.Cause(ctx) != nil:
		ev.Error = context.Cause(ctx).Error()
	default:
		ev.Error = err.Error()
		s.opts.Logger.Error("verification ended early", "err", err)
	}
	lines.write(ev)
	return nil
}

// lineWriter sends each value as one line at once, and remembers the first
// error.
type lineWriter struct {
	enc     *json.Encoder
	control *http.ResponseController
	err     error
}

func (l *lineWriter) write(v any) {
	if l.err == nil {
		l.err = errors.Join(l.enc.Encode(v), l.control.Flush())
	}
}
