package membership

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"

	"chainmail/node/api"
)

// newSecret makes the secret of a token.
func newSecret(ca [sha256.Size]byte) api.Secret {
	s := api.Secret{CA: ca}
	rand.Read(s.ID[:]) // never fails
	rand.Read(s.Key[:])
	return s
}

var errToken = errors.New("this is not a join token, or not the whole of it: one begins with '" + api.JoinTokenPrefix + "', and 'chainmail token join' on any member prints it")

// parseToken reads a join token.
func parseToken(text string) (api.Secret, error) {
	s, ok := api.ParseSecret(api.JoinTokenPrefix, text)
	if !ok {
		return api.Secret{}, errToken
	}
	return s, nil
}
