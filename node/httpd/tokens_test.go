package httpd_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"chainmail/node/api"
	"chainmail/node/httpd"
)

func TestTokenLife(t *testing.T) {
	var o httpd.Options
	n := start(t, func(p *httpd.Options) { o = *p })
	expires := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	request, err := json.Marshal(api.TokenRequest{Name: " Sicherung ü ", ExpiresAt: expires})
	if err != nil {
		t.Fatal(err)
	}
	var made api.Token
	n.admin("POST", "/api/v1/tokens", string(request)).json(http.StatusCreated, &made)
	if made.Name != "Sicherung ü" || !made.ExpiresAt.Equal(expires) || !strings.HasPrefix(made.Secret, "cm_") {
		t.Errorf("made %+v", made)
	}
	status := func(secret string) reply { return n.public("GET", "/api/v1/status", "", "Authorization", secret) }
	status("Bearer " + made.Secret).want(http.StatusOK)
	status("bearer   " + made.Secret).want(http.StatusOK)
	for _, wrong := range []string{"Bearer", "Bearer ", "Basic " + made.Secret, made.Secret, "Bearer " + made.Secret + "x", "Bearer " + made.ID} {
		status(wrong).refused(http.StatusUnauthorized, "chainmail token api")
	}

	b, err := os.ReadFile(o.Tokens)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(o.Tokens); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if strings.Contains(string(b), made.Secret) || !strings.Contains(string(b), sum(made.Secret)) {
		t.Errorf("the file keeps %s", b)
	}
	if entries, _ := os.ReadDir(n.dir); len(entries) != 2 { // the socket and the token file
		t.Errorf("left behind: %v", entries)
	}

	// The token outlives the process.
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	o.Registry = newRegistry()
	n.run(o)
	status("Bearer " + made.Secret).want(http.StatusOK)
	var l api.TokenList
	r := n.admin("GET", "/api/v1/tokens", "")
	r.json(http.StatusOK, &l)
	if len(l.Tokens) != 2 || l.Tokens[1].ID != made.ID || strings.Contains(string(r.body), "secret") {
		t.Errorf("listed %s", r.body)
	}

	n.admin("DELETE", "/api/v1/tokens/"+made.ID, "").want(http.StatusNoContent)
	status("Bearer "+made.Secret).refused(http.StatusUnauthorized, "revoked")
	n.admin("DELETE", "/api/v1/tokens/"+made.ID, "").refused(http.StatusNotFound, made.ID)
	status("Bearer " + n.token).want(http.StatusOK)
}

func TestTokenExpires(t *testing.T) {
	n := start(t, nil)
	soon := time.Now().Add(50 * time.Millisecond).UTC().Format(time.RFC3339Nano)
	var made api.Token
	n.admin("POST", "/api/v1/tokens", `{"name":"short","expires_at":"`+soon+`"}`).json(http.StatusCreated, &made)
	for deadline := time.Now().Add(10 * time.Second); ; {
		r := n.public("GET", "/api/v1/status", "", "Authorization", "Bearer "+made.Secret)
		if r.StatusCode == http.StatusUnauthorized {
			r.refused(http.StatusUnauthorized, made.ID, "expired at")
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("it never expires")
		}
	}
}

func TestTokenRefusals(t *testing.T) {
	n := start(t, nil)
	for body, words := range map[string]string{
		``:                               "send JSON",
		`{"name":""}`:                    "printable",
		`{"name":"a\nb"}`:                "printable",
		`{"name":"x","expires":"never"}`: "expires",
		`{"name":"x","expires_at":"2001-01-01T00:00:00Z"}`: "future",
		`{"name":"` + strings.Repeat("x", 101) + `"}`:      "100",
		`{"name":"` + strings.Repeat("x", 100_000) + `"}`:  "too large",
	} {
		n.admin("POST", "/api/v1/tokens", body).refused(http.StatusBadRequest, words)
	}
}

// TestTokensUnwritable: a change that is not on disk did not happen.
func TestTokensUnwritable(t *testing.T) {
	n := start(t, func(o *httpd.Options) {
		o.Tokens = o.Tokens + ".d/tokens.json"
		if err := os.Mkdir(o.Tokens[:len(o.Tokens)-len("/tokens.json")], 0o700); err != nil {
			t.Fatal(err)
		}
	})
	if err := os.RemoveAll(httpd.DefaultTokens(n.dir) + ".d"); err != nil {
		t.Fatal(err)
	}
	var before, after api.TokenList
	n.admin("GET", "/api/v1/tokens", "").json(http.StatusOK, &before)
	r := n.admin("POST", "/api/v1/tokens", `{"name":"x"}`)
	r.refused(http.StatusInternalServerError, "tokens")
	if strings.Contains(string(r.body), "cm_") {
		t.Error("a secret was shown")
	}
	n.admin("DELETE", "/api/v1/tokens/"+before.Tokens[0].ID, "").refused(http.StatusInternalServerError, "tokens")
	n.admin("GET", "/api/v1/tokens", "").json(http.StatusOK, &after)
	if fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("%v became %v", before, after)
	}
}

func TestTooManyTokens(t *testing.T) {
	n := start(t, func(o *httpd.Options) {
		var b strings.Builder
		b.WriteString(`{"version":1,"tokens":[`)
		for i := range 999 {
			fmt.Fprintf(&b, `{"id":"%d","name":"n","created_at":"2026-01-01T00:00:00Z","sha256":"%s"},`, i, sum(fmt.Sprint(i)))
		}
		if err := os.WriteFile(o.Tokens, []byte(strings.TrimSuffix(b.String(), ",")+`]}`), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	n.admin("POST", "/api/v1/tokens", `{"name":"x"}`).refused(http.StatusConflict, "1000", "revoke")
}
