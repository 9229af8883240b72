package httpd

import (
	"net/http"

	"chainmail/archive"
	"chainmail/node/api"
)

// status adds what the archive knows to what the node says of itself.
func (s *Server) status(w http.ResponseWriter, _ *http.Request) error {
	st, a := s.opts.Status(), s.opts.Archive.Stats()
	st.Store = a.Store.String()
	st.Receipts, st.Messages = a.Receipts, a.Messages
	st.RawBytes, st.StoredSize = a.RawBytes, a.StoredBytes
	st.Disk = api.Disk{Free: a.Free, MinFree: a.MinFree}
	st.Memory = api.Memory{InFlight: a.InFlight, Limit: a.MemoryLimit}
	st.Scrub = api.Scrub{
		StartedAt: a.Scrub.StartedAt, FinishedAt: a.Scrub.FinishedAt,
		Checked: a.Scrub.Checked, Total: a.Scrub.Total, Bad: a.Scrub.Bad, Findings: []api.Finding{},
	}
	for _, f := range a.Scrub.Findings {
		st.Scrub.Findings = append(st.Scrub.Findings, apiFinding(f))
	}
	st.Listeners = list(st.Listeners)
	writeJSON(w, http.StatusOK, st)
	return nil
}

func apiFinding(f archive.Finding) api.Finding {
	a := api.Finding{Position: f.Position.String(), Problem: f.Problem, FoundAt: f.FoundAt}
	if !f.Hash.IsZero() {
		a.SHA256 = f.Hash.String()
	}
	return a
}
