package membership

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"chainmail/node/api"
)

// TestAPITokensAreBounded, and every possible one fits into what nodes read.
func TestAPITokensAreBounded(t *testing.T) {
	s := startState()
	long := strings.Repeat("\U0001F4E7", maxAPITokenName/4)
	add := func(i int, expires time.Time) *refusal {
		c := command{ID: fmt.Sprint("add ", i), At: time.Unix(0, 0), AddAPIToken: &apiToken{
			ID: fmt.Sprintf("%016d", i), Name: long, Scope: api.ScopeCluster, Hash: strings.Repeat("a", 64), Created: time.Unix(0, 0), Expires: expires,
		}}
		next, r := s.apply(c)
		s = next
		return r.Refused
	}
	for i := range maxAPITokens {
		if refused := add(i, time.Unix(int64(i), 0)); refused != nil {
			t.Fatal(refused)
		}
	}
	if refused := add(maxAPITokens, time.Time{}); refused == nil || !strings.Contains(refused.Text, "1000 API tokens, and no more are possible: revoke") {
		t.Errorf("%v", refused)
	}
	b, err := encodeState(s)
	if err != nil || len(b) > maxState/8 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if again, err := decodeState(b); err != nil || mustJSON(again) != mustJSON(s) {
		t.Errorf("does not survive encoding: %v", err)
	}
	s, _ = s.apply(command{ID: "revoke", RevokeAPIToken: &revokeAPIToken{ID: fmt.Sprintf("%016d", 7)}})
	if refused := add(maxAPITokens+1, time.Time{}); refused != nil || len(s.APITokens) != maxAPITokens {
		t.Errorf("%v", refused)
	}
}
