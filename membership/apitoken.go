package membership

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"chainmail/membership/ring"
	"chainmail/node/api"
)

// apiToken is an API token as the cluster keeps it: every node can check the
// secret, and none can show it.
type apiToken struct {
	ID      string    `json:"id"` // in the secret, too; see api.Secret
	Name    string    `json:"name"`
	Scope   string    `json:"scope"`
	Hash    string    `json:"hash"` // of the secret
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"` // zero: never
}

// revokeAPIToken ends an API token.
type revokeAPIToken struct {
	ID string `json:"id"`
}

const (
	maxAPITokens    = 1000
	maxAPITokenName = 400 // bytes
	// keepAPIToken is how long one is still listed after its expiry, so that
	// people see why a program is refused.
	keepAPIToken = 30 * 24 * time.Hour
)

func (t apiToken) expired(now time.Time) bool { return !t.Expires.IsZero() && !now.Before(t.Expires) }

func (t apiToken) describe() api.Token {
	return api.Token{ID: t.ID, Name: t.Name, Scope: t.Scope, CreatedAt: t.Created, ExpiresAt: t.Expires}
}

// check refuses what no node of this version proposes.
func (t apiToken) check() *refusal {
	switch {
	case t.ID == "" || len(t.ID) > 64 || len(t.Hash) != 64:
		return refuse(reasonRefused, "an API token needs an ID and the hash of its secret")
	case t.Name == "" || len(t.Name) > maxAPITokenName || !utf8.ValidString(t.Name):
		return refuse(reasonRefused, "the name of an API token has 1 to %d bytes of text, not %d", maxAPITokenName, len(t.Name))
	case t.Scope != api.ScopeRead && t.Scope != api.ScopeCluster:
		return refuse(reasonRefused, "%q is not a scope of an API token: choose %s or %s", t.Scope, api.ScopeRead, api.ScopeCluster)
	}
	return nil
}

// addAPIToken keeps an API token, and forgets those that expired long ago. The
// epoch grows with every such change: so a node that starts from an old
// snapshot never takes up a token again that it knows to be revoked.
func (s *state) addAPIToken(t apiToken, now time.Time) (bool, *refusal) {
	if refused := t.check(); refused != nil {
		return false, refused
	}
	s.APITokens = slices.DeleteFunc(s.APITokens, func(o apiToken) bool {
		return !o.Expires.IsZero() && now.After(o.Expires.Add(keepAPIToken))
	})
	switch {
	case slices.ContainsFunc(s.APITokens, func(o apiToken) bool { return o.ID == t.ID }):
		return false, refuse(reasonRefused, "there is an API token with the ID %s already: make another one", t.ID)
	case len(s.APITokens) >= maxAPITokens:
		return false, refuse(reasonRefused, "there are %d API tokens, and no more are possible: revoke those that nobody uses, 'chainmail token list' shows them", len(s.APITokens))
	}
	s.APITokens = append(s.APITokens, t)
	return true, nil
}

func (s *state) revokeAPIToken(c revokeAPIToken) (bool, *refusal) {
	left := slices.DeleteFunc(s.APITokens, func(t apiToken) bool { return t.ID == c.ID })
	if len(left) == len(s.APITokens) {
		return false, refuse(reasonNoAPIToken, "there is no API token with the ID %q: 'chainmail token list' shows them", c.ID)
	}
	s.APITokens = left
	return true, nil
}

// APITokens lists the API tokens, those included that expired in the last days,
// the oldest first. It never blocks.
func (m *Membership) APITokens() []api.Token {
	tokens := []api.Token{}
	for _, t := range m.current.Load().APITokens {
		tokens = append(tokens, t.describe())
	}
	return tokens
}

// AddAPIToken makes an API token that works on every node; the answer alone has
// its secret. A zero expiry: it never expires.
func (m *Membership) AddAPIToken(ctx context.Context, name, scope string, expires time.Time) (api.Token, error) {
	secret := newSecret(m.current.Load().CA.fingerprint())
	t := apiToken{
		ID: secret.Name(), Name: name, Scope: scope, Hash: secret.Hash(),
		Created: time.Now().UTC().Truncate(time.Second), Expires: expires.UTC(),
	}
	if refused := t.check(); refused != nil {
		return api.Token{}, refused
	}
	if _, err := m.change(ctx, command{AddAPIToken: &t}); err != nil {
		return api.Token{}, err
	}
	made := t.describe()
	made.Secret = secret.Text(api.APITokenPrefix)
	return made, nil
}

// RevokeAPIToken ends an API token: on every node as soon as it follows the
// cluster to the epoch returned. An ID that there is not is an ErrNoAPIToken.
func (m *Membership) RevokeAPIToken(ctx context.Context, id string) (ring.Epoch, error) {
	e, err := m.change(ctx, command{RevokeAPIToken: &revokeAPIToken{ID: id}})
	if errors.Is(err, ErrNoQuorum) {
		err = fmt.Errorf("the token works until it is revoked: %w", err)
	}
	return e, err
}

// CheckAPIToken finds the token whose secret a client has sent, or says, as an
// ErrAPIToken, why it opens nothing. It asks nobody.
func (m *Membership) CheckAPIToken(text string) (api.Token, error) {
	secret, ok := api.ParseSecret(api.APITokenPrefix, text)
	s := m.current.Load()
	switch {
	case !ok:
		return api.Token{}, fail(ErrAPIToken, "this is no API token of a cluster, or not the whole of it: one begins with '%s'", api.APITokenPrefix)
	case secret.CA != s.CA.fingerprint():
		return api.Token{}, fail(ErrAPIToken, "the API token %s belongs to another cluster than the node %s", secret.Name(), m.name)
	}
	i := slices.IndexFunc(s.APITokens, func(t apiToken) bool { return t.ID == secret.Name() })
	switch {
	case i < 0 || subtle.ConstantTimeCompare([]byte(s.APITokens[i].Hash), []byte(secret.Hash())) != 1:
		return api.Token{}, fail(ErrAPIToken, "the API token %s is not known: it was revoked, or %s has not heard of it yet", secret.Name(), m.name)
	case s.APITokens[i].expired(time.Now()):
		return api.Token{}, fail(ErrAPIToken, "the API token %s expired at %s", secret.Name(), s.APITokens[i].Expires.Format(time.RFC3339))
	}
	return s.APITokens[i].describe(), nil
}
