package httpd

import (
	"net/http"

	"chainmail/archive"
	"chainmail/node/api"
)

// verify reads and checks every message, and streams api.VerifyEvent lines. It
// ends when the client goes away or the server stops: the last line says how.
func (s *Server) verify(w http.ResponseWriter, r *http.Request) error {
	run := s.newStream(w, r)
	defer run.end()
	var ev api.VerifyEvent
	run.write(ev, true) // the client sees at once that it began
	err := s.opts.Archive.Verify(run.ctx, func(p archive.Progress) {
		ev.Checked, ev.Total, ev.Bytes, ev.Finding = p.Checked, p.Total, p.Bytes, nil
		if p.Finding != nil {
			f := apiFinding(*p.Finding)
			ev.Finding = &f
			ev.Bad++
		}
		run.write(ev, ev.Finding != nil)
	})
	ev.Finding = nil
	if ev.Error = run.problem(err); ev.Error == "" {
		ev.Done = true
	}
	run.write(ev, true)
	return nil
}
