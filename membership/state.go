package membership

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"chainmail/membership/ring"
)

// state is all that the cluster agrees on. It is immutable: apply makes a new
// one. Every member keeps the whole of it, so that any of them can lead.
type state struct {
	View   ring.View  `json:"view"`
	CA     authority  `json:"ca"`
	Gossip gossipKeys `json:"gossip"`
	// Renew: node certificates signed before this epoch are to be replaced.
	Renew  ring.Epoch `json:"renew,omitempty"`
	Tokens []token    `json:"tokens,omitempty"`
	Done   []done     `json:"done,omitempty"` // the newest last
	// APITokens open the HTTP interface of every node, the oldest first.
	APITokens []apiToken `json:"api_tokens,omitempty"`
}

// gossipKeys encrypt the gossip; each is 32 bytes, for AES-256. A rotation
// goes through three states, so that at any moment every node can read what
// any other one sends:
//
//	steady   one key
//	adding   old, new; everybody sends with old until all can read new
//	using    new, old; everybody sends with new, and reads both until all send new
type gossipKeys struct {
	Keys  [][]byte   `json:"keys"` // the first one encrypts, all of them decrypt
	Phase phase      `json:"phase"`
	Since ring.Epoch `json:"since"` // epoch of the phase: the next one begins when every live member reached it
}

type phase string

const (
	steady phase = "steady"
	adding phase = "adding"
	using  phase = "using"
)

const gossipKeySize = 32

func newGossipKey() []byte {
	k := make([]byte, gossipKeySize)
	rand.Read(k)
	return k
}

// token is a join token as the cluster keeps it.
type token struct {
	Hash    string    `json:"hash"`
	Expires time.Time `json:"expires"`
	// What it was used for; empty: not yet. A joiner that asks again with the
	// same key gets the same certificate again.
	Key         string `json:"key,omitempty"`
	Name        string `json:"name,omitempty"`
	Certificate []byte `json:"certificate,omitempty"`
}

// done remembers a change, so that asking for it twice makes it once.
type done struct {
	ID      string     `json:"id"`
	Epoch   ring.Epoch `json:"epoch"`
	Refused *refusal   `json:"refused,omitempty"`
}

// Bounds of what the state remembers.
const (
	maxDone   = 256
	maxTokens = 256
	keepToken = 24 * time.Hour // after its expiry, so that a late joiner is told why
)

func newID() string {
	b := make([]byte, 16)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// clone copies what apply changes in place. Members are copied deeply enough
// that a change of one never shows in a view that was given out.
func (s state) clone() state {
	s.View.Members = slices.Clone(s.View.Members)
	for i := range s.View.Members {
		s.View.Members[i].Certificates = slices.Clone(s.View.Members[i].Certificates)
	}
	s.Gossip.Keys = slices.Clone(s.Gossip.Keys)
	s.Tokens = slices.Clone(s.Tokens)
	s.APITokens = slices.Clone(s.APITokens)
	s.Done = slices.Clone(s.Done)
	return s
}

// stateFormat is the version of the JSON of a state on disk and in snapshots.
const stateFormat = 1

type stateFile struct {
	Format int   `json:"format"`
	State  state `json:"state"`
}

func encodeState(s state) ([]byte, error) {
	return json.Marshal(stateFile{stateFormat, s})
}

func decodeState(b []byte) (state, error) {
	var f stateFile
	if err := json.Unmarshal(b, &f); err != nil {
		return state{}, err
	}
	if f.Format != stateFormat {
		return state{}, fmt.Errorf("format %d is not known to this version: use the version that wrote it, or a newer one", f.Format)
	}
	s := f.State
	if err := s.check(); err != nil {
		return state{}, err
	}
	if _, err := s.CA.certificate(); err != nil {
		return state{}, fmt.Errorf("CA: %w", err)
	}
	return s, nil
}

// check says what is wrong with a state. No command leads to such a one.
func (s state) check() error {
	if err := s.View.Check(); err != nil {
		return err
	}
	if want := map[phase]int{steady: 1, adding: 2, using: 2}[s.Gossip.Phase]; len(s.Gossip.Keys) != want || want == 0 {
		return fmt.Errorf("%d gossip keys in phase %q", len(s.Gossip.Keys), s.Gossip.Phase)
	}
	for _, k := range s.Gossip.Keys {
		if len(k) != gossipKeySize {
			return fmt.Errorf("a gossip key of %d bytes: want %d", len(k), gossipKeySize)
		}
	}
	return nil
}
