package membership

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"
)

// tokenPrefix tells what a token is for, and the layout of what follows:
//
//	chainmail-join-1.<base64url of 64 bytes>
//	   32 bytes  SHA-256 of the cluster CA's certificate
//	    8 bytes  ID: names the token in messages
//	   24 bytes  secret
const tokenPrefix = "chainmail-join-1."

const (
	tokenID     = 8
	tokenSecret = 24
	tokenSize   = sha256.Size + tokenID + tokenSecret
)

// joinToken lets one node join. It names the CA, so that the joiner knows with
// whom it speaks before it says anything.
type joinToken struct {
	ca     [sha256.Size]byte
	id     [tokenID]byte
	secret [tokenSecret]byte
}

func newToken(ca [sha256.Size]byte) joinToken {
	t := joinToken{ca: ca}
	rand.Read(t.id[:]) // never fails
	rand.Read(t.secret[:])
	return t
}

func (t joinToken) String() string {
	b := make([]byte, 0, tokenSize)
	b = append(b, t.ca[:]...)
	b = append(b, t.id[:]...)
	b = append(b, t.secret[:]...)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// name is how messages speak of the token without giving it away.
func (t joinToken) name() string { return hex.EncodeToString(t.id[:]) }

// hash is what the cluster keeps of the token.
func (t joinToken) hash() string {
	h := sha256.Sum256(append(append([]byte{}, t.id[:]...), t.secret[:]...))
	return hex.EncodeToString(h[:])
}

var errToken = errors.New("this is not a join token, or not the whole of it: one begins with '" + tokenPrefix + "', and 'chainmail token join' on any member prints it")

func parseToken(s string) (joinToken, error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(s), tokenPrefix)
	if !ok {
		return joinToken{}, errToken
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if err != nil || len(b) != tokenSize || strings.ContainsAny(rest, "\r\n") {
		return joinToken{}, errToken
	}
	var t joinToken
	copy(t.ca[:], b)
	copy(t.id[:], b[sha256.Size:])
	copy(t.secret[:], b[sha256.Size+tokenID:])
	return t, nil
}
