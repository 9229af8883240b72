package httpd

import (
	"net/http"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"chainmail/node/api"
)

const (
	maxTokenName = 100 // characters
	maxTokens    = 1000
)

func (s *Server) listTokens(w http.ResponseWriter, _ *http.Request) error {
	tokens := api.TokenList{Tokens: []api.Token{}}
	for _, t := range s.tokens.list() {
		tokens.Tokens = append(tokens.Tokens, t.describe())
	}
	writeJSON(w, http.StatusOK, tokens)
	return nil
}

// makeToken answers with the only copy of the secret that will ever be shown.
func (s *Server) makeToken(w http.ResponseWriter, r *http.Request) error {
	var req api.TokenRequest
	if err := s.readJSON(w, r, &req, `{"name":"backup","expires_at":"2027-01-31T00:00:00Z"}`); err != nil {
		return err
	}
	now := time.Now().UTC()
	req.Name = strings.TrimSpace(req.Name)
	switch {
	case req.Name == "" || utf8.RuneCountInString(req.Name) > maxTokenName || strings.ContainsFunc(req.Name, unicode.IsControl):
		return badRequest("the token's name is %q: give 1 to %d printable characters that say who uses it", req.Name, maxTokenName)
	case !req.ExpiresAt.IsZero() && !req.ExpiresAt.After(now):
		return badRequest("expires_at is %s: give a time in the future", req.ExpiresAt.Format(time.RFC3339))
	}
	t, secret, err := s.tokens.make(req.Name, now, req.ExpiresAt)
	if err != nil {
		return err
	}
	s.opts.Logger.Info("API token made", "token", t.ID, "name", t.Name)
	made := t.describe()
	made.Secret = secret
	writeJSON(w, http.StatusCreated, made)
	return nil
}

func (s *Server) revokeToken(w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("id")
	if err := s.tokens.revoke(id); err != nil {
		return err
	}
	s.opts.Logger.Info("API token revoked", "token", id)
	w.WriteHeader(http.StatusNoContent)
	return nil
}
