package httpd

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"chainmail/archive/record"
	"chainmail/node/api"
)

// secretPrefix makes a leaked token recognisable to people and scanners.
const secretPrefix = "cm_"

// storedToken is one token as the file keeps it: the secret is 32 random
// bytes, so its plain SHA-256 cannot be guessed back.
type storedToken struct {
	ID        string      `json:"id"`
	Name      string      `json:"name"`
	CreatedAt time.Time   `json:"created_at"`
	ExpiresAt time.Time   `json:"expires_at,omitzero"`
	SHA256    record.Hash `json:"sha256"`
}

func (t storedToken) describe() api.Token {
	return api.Token{ID: t.ID, Name: t.Name, CreatedAt: t.CreatedAt, ExpiresAt: t.ExpiresAt}
}

// tokenFile is the whole file.
type tokenFile struct {
	Version int           `json:"version"`
	Tokens  []storedToken `json:"tokens"`
}

const tokenFileVersion = 1

// tokenStore keeps the API tokens in memory and in one small file, which every
// change replaces as a whole.
type tokenStore struct {
	path   string
	mu     sync.RWMutex
	tokens []storedToken // replaced, never changed in place
}

// openTokenStore reads the file at path; one that does not exist is empty.
func openTokenStore(path string) (*tokenStore, error) {
	t := &tokenStore{path: path}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the API tokens: %w", err)
	}
	var f tokenFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("cannot read the API tokens in %s: %w: restore the file, or remove it and make new tokens", path, err)
	}
	if f.Version != tokenFileVersion {
		return nil, fmt.Errorf("cannot read the API tokens in %s: it has version %d, and this program knows %d: use the newer program that wrote it", path, f.Version, tokenFileVersion)
	}
	t.tokens = f.Tokens
	return t, nil
}

func (t *tokenStore) list() []storedToken {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.tokens
}

// check reports, as a problem, why secret opens nothing.
func (t *tokenStore) check(secret string, now time.Time) error {
	sum := sha256.Sum256([]byte(secret))
	var found *storedToken
	for _, tok := range t.list() {
		if subtle.ConstantTimeCompare(sum[:], tok.SHA256[:]) == 1 {
			found = &tok
		}
	}
	switch {
	case found == nil:
		return noToken("the API token is not known: it was revoked, or belongs to another node")
	case !found.ExpiresAt.IsZero() && !now.Before(found.ExpiresAt):
		return noToken(fmt.Sprintf("the API token %s expired at %s", found.ID, found.ExpiresAt.Format(time.RFC3339)))
	default:
		return nil
	}
}

// make adds a token and returns it with its secret.
func (t *tokenStore) make(name string, now, expires time.Time) (storedToken, string, error) {
	random := make([]byte, 32+4) // crypto/rand.Read never fails
	_, _ = rand.Read(random)
	secret := secretPrefix + base64.RawURLEncoding.EncodeToString(random[:32])
	tok := storedToken{
		ID: hex.EncodeToString(random[32:]), Name: name, CreatedAt: now, ExpiresAt: expires,
		SHA256: sha256.Sum256([]byte(secret)),
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.tokens) >= maxTokens {
		return tok, "", &StatusError{
			http.StatusConflict, fmt.Sprintf("there are %d API tokens, and no more are possible", maxTokens),
			"revoke those that nobody uses",
		}
	}
	return tok, secret, t.replace(append(slices.Clone(t.tokens), tok))
}

// revoke removes the token with this ID.
func (t *tokenStore) revoke(id string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	left := slices.DeleteFunc(slices.Clone(t.tokens), func(tok storedToken) bool { return tok.ID == id })
	if len(left) == len(t.tokens) {
		return notFound("there is no API token with the ID %q", id).hint("'chainmail token list' shows them")
	}
	return t.replace(left)
}

// replace writes the file and, when it is on disk, the memory. The caller
// holds the lock.
func (t *tokenStore) replace(tokens []storedToken) error {
	b, err := json.MarshalIndent(tokenFile{Version: tokenFileVersion, Tokens: tokens}, "", "\t")
	if err == nil {
		err = writeFileSynced(t.path, append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("cannot keep the API tokens: %w", err)
	}
	t.tokens = tokens
	return nil
}

// writeFileSynced replaces a file so that after a crash it holds the old
// bytes or the new ones. Only its owner may read it.
func writeFileSynced(path string, b []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails after the rename, as it should
	_, err = tmp.Write(b)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
