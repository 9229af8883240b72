package httpd_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"chainmail/node/api"
	"chainmail/node/httpd"
)

// fakeTokens are a cluster's API tokens.
type fakeTokens struct {
	mu     sync.Mutex
	tokens map[string]api.Token // by secret
	order  []string
	err    error // of every change
}

func newFakeTokens() *fakeTokens { return &fakeTokens{tokens: map[string]api.Token{}} }

func (f *fakeTokens) Check(secret string) (api.Token, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, ok := f.tokens[secret]
	if !ok {
		return t, errors.New("the API token is not known: it was revoked")
	}
	return t, nil
}

func (f *fakeTokens) List() []api.Token {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []api.Token
	for _, secret := range f.order {
		all = append(all, f.tokens[secret])
	}
	return all
}

func (f *fakeTokens) Make(_ context.Context, r api.TokenRequest) (api.Token, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return api.Token{}, f.err
	}
	n := byte(len(f.order) + 1)
	secret := api.Secret{ID: [8]byte{n}, Key: [24]byte{n}}
	t := api.Token{ID: secret.Name(), Name: r.Name, Scope: r.Scope, CreatedAt: time.Now().UTC(), ExpiresAt: r.ExpiresAt}
	text := secret.Text(api.APITokenPrefix)
	f.tokens[text], f.order = t, append(f.order, text)
	t.Secret = text
	return t, nil
}

func (f *fakeTokens) Revoke(_ context.Context, id string) (api.Changed, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return api.Changed{}, f.err
	}
	for i, secret := range f.order {
		if f.tokens[secret].ID == id {
			f.order = append(f.order[:i:i], f.order[i+1:]...)
			delete(f.tokens, secret)
			return api.Changed{Epoch: 9, Message: "b is not reached"}, nil
		}
	}
	return api.Changed{}, &httpd.StatusError{Code: 404, Text: fmt.Sprintf("there is no API token %q", id)}
}
