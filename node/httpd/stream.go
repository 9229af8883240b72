package httpd

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"
)

// progressPeriod is the least time between two lines of progress.
const progressPeriod = 200 * time.Millisecond

// stream sends the lines of something that may last for hours. Its context
// ends when the client goes away or the server stops.
type stream struct {
	server  *Server
	ctx     context.Context
	cancel  context.CancelCauseFunc
	lines   lineWriter
	written time.Time
	watch   sync.WaitGroup
}

func (s *Server) newStream(w http.ResponseWriter, r *http.Request) *stream {
	st := &stream{server: s}
	st.ctx, st.cancel = context.WithCancelCause(r.Context())
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	st.lines = lineWriter{enc: json.NewEncoder(w), control: http.NewResponseController(w)}
	st.watch.Go(func() {
		select {
		case <-s.stopping:
			st.cancel(errors.New("the node is shutting down"))
		case <-st.ctx.Done():
		}
	})
	return st
}

// end must be called when the last line was written.
func (st *stream) end() {
	st.cancel(nil)
	st.watch.Wait()
}

// write sends a line that matters, or one of progress when it is time.
func (st *stream) write(line any, matters bool) {
	if now := time.Now(); matters || now.Sub(st.written) >= progressPeriod {
		st.written = now
		st.lines.write(line)
	}
	if st.lines.err != nil {
		st.cancel(st.lines.err)
	}
}

// problem says why the work ended early with err; empty: it did not.
func (st *stream) problem(err error) string {
	if err == nil {
		return ""
	}
	if cause := context.Cause(st.ctx); cause != nil {
		return cause.Error()
	}
	st.server.opts.Logger.Error("verification ended early", "err", err)
	return err.Error()
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
