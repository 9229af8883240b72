package httpd

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"chainmail/node/api"
)

// Tokens are the API tokens, which are the same on every node of a cluster.
// Errors may be a *StatusError.
type Tokens interface {
	// Check finds the token whose secret a client has sent, or says why it opens
	// nothing. It is called for each request, and asks nobody.
	Check(secret string) (api.Token, error)
	List() []api.Token
	// Make makes a token, with its secret.
	Make(ctx context.Context, r api.TokenRequest) (api.Token, error)
	Revoke(ctx context.Context, id string) (api.Changed, error)
}

const maxTokenName = 100 // characters

func (s *Server) listTokens(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, api.TokenList{Tokens: list(s.opts.Tokens.List())})
	return nil
}

// makeToken answers with the only copy of the secret that will ever be shown.
func (s *Server) makeToken(w http.ResponseWriter, r *http.Request) error {
	var req api.TokenRequest
	if err := s.readJSON(w, r, &req, `{"name":"backup","scope":"read","expires_at":"2027-01-31T00:00:00Z"}`); err != nil {
		return err
	}
	req.Name = strings.TrimSpace(req.Name)
	if req.Scope == "" {
		req.Scope = api.ScopeRead
	}
	switch {
	case req.Name == "" || utf8.RuneCountInString(req.Name) > maxTokenName || strings.ContainsFunc(req.Name, unicode.IsControl):
		return badRequest("the token's name is %q: give 1 to %d printable characters that say who uses it", req.Name, maxTokenName)
	case req.Scope != api.ScopeRead && req.Scope != api.ScopeCluster:
		return badRequest("the token's scope is %q: give %s for one that may read mail, or %s for one that sees only the cluster's members", req.Scope, api.ScopeRead, api.ScopeCluster)
	case !req.ExpiresAt.IsZero() && !req.ExpiresAt.After(time.Now()):
		return badRequest("expires_at is %s: give a time in the future", req.ExpiresAt.Format(time.RFC3339))
	}
	made, err := s.opts.Tokens.Make(r.Context(), req)
	if err != nil {
		return err
	}
	s.opts.Logger.Info("API token made", "token", made.ID, "name", made.Name, "scope", made.Scope)
	writeJSON(w, http.StatusCreated, made)
	return nil
}

func (s *Server) revokeToken(w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("id")
	done, err := s.opts.Tokens.Revoke(r.Context(), id)
	if err != nil {
		return err
	}
	s.opts.Logger.Info("API token revoked", "token", id, "epoch", done.Epoch)
	writeJSON(w, http.StatusOK, done)
	return nil
}

// authenticate takes "Authorization: Bearer SECRET" (RFC 6750 2.1).
func (s *Server) authenticate(r *http.Request) (api.Token, error) {
	scheme, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return api.Token{}, noToken("this resource needs an API token",
			"send the header 'Authorization: Bearer SECRET'; 'chainmail token api' on the machine of any node makes a token")
	}
	t, err := s.opts.Tokens.Check(strings.TrimSpace(secret))
	if err != nil {
		return api.Token{}, noToken(err.Error(),
			"'chainmail token list' on the machine of any node shows those that there are, 'chainmail token api' makes another")
	}
	return t, nil
}

// permits says, as a refusal, what a token's scope does not open.
func permits(t api.Token, needs access) error {
	if t.Scope == api.ScopeRead || t.Scope == api.ScopeCluster && needs == anyToken {
		return nil
	}
	return &StatusError{
		http.StatusForbidden, fmt.Sprintf("the API token %s has the scope %s, which opens GET %s/cluster and nothing else", t.ID, t.Scope, api.Prefix),
		"'chainmail token api --scope read' makes one that may read mail",
	}
}
