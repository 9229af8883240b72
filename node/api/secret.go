package api

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"strings"
)

// What begins the text of a token says what it is for, and the layout of what
// follows:
//
//	<prefix><base64url of 64 bytes>
//	   32 bytes  SHA-256 of the cluster CA's certificate
//	    8 bytes  ID: names the token in messages
//	   24 bytes  key: what nobody can guess
const (
	JoinTokenPrefix = "chainmail-join-1."
	APITokenPrefix  = "chainmail-api-1."
)

// Secret is what the text of a token carries. It names the CA, so that who has
// only the token knows with whom it speaks before it says anything.
type Secret struct {
	CA  [sha256.Size]byte // SHA-256 of its certificate
	ID  [8]byte
	Key [24]byte
}

const secretSize = sha256.Size + 8 + 24

// Text is the token as people and programs keep it.
func (s Secret) Text(prefix string) string {
	b := make([]byte, 0, secretSize)
	b = append(b, s.CA[:]...)
	b = append(b, s.ID[:]...)
	b = append(b, s.Key[:]...)
	return prefix + base64.RawURLEncoding.EncodeToString(b)
}

// ParseSecret reads a token's text, with white space around it; false when it is
// none, or not the whole of it.
func ParseSecret(prefix, text string) (s Secret, ok bool) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), prefix)
	if !ok || strings.ContainsAny(rest, "\r\n") { // which the decoder would skip
		return Secret{}, false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if err != nil || len(b) != secretSize {
		return Secret{}, false
	}
	copy(s.CA[:], b)
	copy(s.ID[:], b[sha256.Size:])
	copy(s.Key[:], b[sha256.Size+len(s.ID):])
	return s, true
}

// Name is how messages speak of the token without giving it away.
func (s Secret) Name() string { return hex.EncodeToString(s.ID[:]) }

// Hash is what a cluster keeps of the token: its key is random and long, so the
// hash cannot be guessed back.
func (s Secret) Hash() string {
	h := sha256.Sum256(append(append([]byte{}, s.ID[:]...), s.Key[:]...))
	return hex.EncodeToString(h[:])
}
