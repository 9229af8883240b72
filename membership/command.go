package membership

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"chainmail/membership/ring"
)

// command is one entry of Raft's log. Exactly one of the pointers is set; it
// says what the command does. Everything that is random or depends on a clock
// is decided by the leader and written here, so that every node comes to the
// same state.
//
// A kind that a node does not know would make its state differ from the
// others': a later version may propose a new kind only when the versions of
// all members in the view know it.
type command struct {
	ID string    `json:"id"` // of the change
	At time.Time `json:"at"` // the leader's clock

	Policies *setPolicies `json:"policies,omitempty"`
	State    *setState    `json:"state,omitempty"`
	Remove   *remove      `json:"remove,omitempty"`
	Move     *move        `json:"move,omitempty"`
	Update   *update      `json:"update,omitempty"`
	Token    *addToken    `json:"token,omitempty"`
	Join     *join        `json:"join,omitempty"`
	Rotate   *rotate      `json:"rotate,omitempty"`
	Keys     *keysPhase   `json:"keys,omitempty"`
	Renewed  *renewed     `json:"renewed,omitempty"`
	Recover  *recoverOne  `json:"recover,omitempty"`

	AddAPIToken    *apiToken       `json:"add_api_token,omitempty"`
	RevokeAPIToken *revokeAPIToken `json:"revoke_api_token,omitempty"`
}

// setPolicies sets those policies that are given, so that two people who set
// two of them do not undo each other.
type setPolicies struct {
	Copies       *int            `json:"copies,omitempty"`
	Replicas     *int            `json:"replicas,omitempty"`
	WhenShort    *ring.WhenShort `json:"when_short,omitempty"`
	AckTimeout   *time.Duration  `json:"ack_timeout,omitempty"`
	BackfillRate *int64          `json:"backfill_rate,omitempty"`
	Balancers    *[]string       `json:"balancers,omitempty"`
}

type setState struct {
	Name  string     `json:"name"`
	State ring.State `json:"state"`
}

type remove struct {
	Name string `json:"name"`
	Key  []byte `json:"key"` // the next gossip key: who is removed shall not listen on
	// Drained: only if this is the member's ID, and it is draining. So a drain
	// that is called off meanwhile wins.
	Drained string `json:"drained,omitempty"`
}

type move struct {
	Name  string `json:"name"`
	After string `json:"after"`
}

type update struct {
	Name      string         `json:"name"`
	Addresses ring.Addresses `json:"addresses"`
	Version   string         `json:"version"`
}

type addToken struct {
	Hash    string    `json:"hash"`
	Expires time.Time `json:"expires"`
}

type join struct {
	Token       string      `json:"token"` // hash
	Label       string      `json:"label"` // ID of the token, for messages
	Key         string      `json:"key"`   // SHA-256 of the joiner's public key
	Replace     bool        `json:"replace,omitempty"`
	GossipKey   []byte      `json:"gossip_key,omitempty"` // of a replacement, as in remove
	Member      ring.Member `json:"member"`
	Certificate []byte      `json:"certificate"`
}

type rotate struct {
	Key []byte `json:"key"`
}

// keysPhase moves the rotation of the gossip keys on from a phase.
type keysPhase struct {
	From  phase      `json:"from"`
	Since ring.Epoch `json:"since"`
}

// renewed sets a member's certificates: its old and new one, then the new one.
type renewed struct {
	Name         string   `json:"name"`
	ID           string   `json:"id"` // of the member: a replaced one must not be given a certificate
	Certificates []string `json:"certificates"`
}

// recoverOne makes one member the whole cluster.
type recoverOne struct {
	Name string `json:"name"`
	Key  []byte `json:"key"`
}

// decodeCommand refuses what this version does not know: applying half of a
// command would make the nodes disagree.
func decodeCommand(b []byte) (command, error) {
	var c command
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return command{}, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return command{}, errors.New("something follows the command")
	}
	kinds := 0
	for _, set := range []bool{
		c.Policies != nil, c.State != nil, c.Remove != nil, c.Move != nil, c.Update != nil, c.Token != nil, c.Join != nil,
		c.Rotate != nil, c.Keys != nil, c.Renewed != nil, c.Recover != nil,
		c.AddAPIToken != nil, c.RevokeAPIToken != nil,
	} {
		if set {
			kinds++
		}
	}
	if kinds != 1 || c.ID == "" {
		return command{}, fmt.Errorf("a command has an ID and one kind, not %d", kinds)
	}
	return c, nil
}

// result is what a command came to.
type result struct {
	Epoch       ring.Epoch `json:"epoch"`
	Refused     *refusal   `json:"refused,omitempty"`
	Certificate []byte     `json:"certificate,omitempty"` // of a join
}

// apply is the whole of what commands do. It is a pure function: the same
// commands lead to the same state on every node.
func (s state) apply(c command) (state, result) {
	for _, d := range s.Done {
		if d.ID == c.ID && c.Join == nil { // joins are known by their token, and have a certificate to give
			return s, result{Epoch: d.Epoch, Refused: d.Refused}
		}
	}
	next := s.clone()
	var r result
	changed, refused := next.change(c, &r)
	if err := next.check(); refused == nil && err != nil { // a command with nonsense in it
		refused = refuse(reasonRefused, "%v", err)
	}
	if refused != nil {
		next = s.clone() // whatever was half changed
		r = result{Refused: refused}
	} else if changed {
		next.View.Epoch++
	}
	r.Epoch = next.View.Epoch
	next.Done = append(next.Done, done{c.ID, r.Epoch, r.Refused})
	next.Done = next.Done[max(0, len(next.Done)-maxDone):]
	return next, r
}

// change does what the command says to a copy that is its own, and reports
// whether the view changed.
func (s *state) change(c command, r *result) (changed bool, refused *refusal) {
	switch {
	case c.Policies != nil:
		return s.setPolicies(*c.Policies)
	case c.State != nil:
		return s.setState(*c.State)
	case c.Remove != nil:
		return s.remove(*c.Remove)
	case c.Move != nil:
		return s.move(*c.Move)
	case c.Update != nil:
		return s.update(*c.Update)
	case c.Token != nil:
		s.addToken(*c.Token, c.At)
		return false, nil
	case c.Join != nil:
		return s.join(*c.Join, c.At, r)
	case c.Rotate != nil:
		return s.rotate(*c.Rotate)
	case c.Keys != nil:
		return s.nextPhase(*c.Keys), nil
	case c.Renewed != nil:
		return s.renewed(*c.Renewed)
	case c.Recover != nil:
		return s.recoverOne(*c.Recover)
	case c.AddAPIToken != nil:
		return s.addAPIToken(*c.AddAPIToken, c.At)
	case c.RevokeAPIToken != nil:
		return s.revokeAPIToken(*c.RevokeAPIToken)
	}
	return false, refuse(reasonRefused, "this version does not know the change")
}

// member finds a member of the state to change it.
func (s *state) member(name string) (*ring.Member, *refusal) {
	for i := range s.View.Members {
		if s.View.Members[i].Name == name {
			return &s.View.Members[i], nil
		}
	}
	return nil, notMember(name, names(s.View))
}

func names(v ring.View) []string {
	var names []string
	for _, m := range v.Members {
		names = append(names, m.Name)
	}
	return names
}

// stays reports whether another data member than this one keeps mail.
func (s *state) stays(name string) bool {
	return slices.ContainsFunc(s.View.Members, func(m ring.Member) bool {
		return m.Name != name && m.Role == ring.Data && m.State != ring.Draining
	})
}

func (s *state) setPolicies(c setPolicies) (bool, *refusal) {
	p := s.View.Policies
	override(&p.Copies, c.Copies)
	override(&p.Replicas, c.Replicas)
	override(&p.WhenShort, c.WhenShort)
	override(&p.AckTimeout, c.AckTimeout)
	override(&p.BackfillRate, c.BackfillRate)
	override(&p.Balancers, c.Balancers)
	if err := p.Check(); err != nil {
		return false, refuse(reasonRefused, "%v", err)
	}
	changed := !p.Equal(s.View.Policies)
	s.View.Policies = p
	return changed, nil
}

func override[T any](to, with *T) {
	if with != nil {
		*to = *with
	}
}

func (s *state) setState(c setState) (bool, *refusal) {
	m, refused := s.member(c.Name)
	switch {
	case refused != nil:
		return false, refused
	case m.State == c.State:
		return false, nil
	case m.Role == ring.Witness:
		return false, refuse(reasonRefused, "%s is a witness: it holds no mail, so it has nothing to catch up or drain; 'chainmail remove-node %s' removes it", c.Name, c.Name)
	case c.State == ring.Draining && !s.stays(c.Name):
		return false, refuse(reasonRefused, "%s is the last node that keeps mail: there is none to move its copies to; let another node join first", c.Name)
	case c.State == ring.Joining:
		return false, refuse(reasonRefused, "%s has joined: a member does not go back to joining", c.Name)
	case c.State != ring.Active && c.State != ring.Draining:
		return false, refuse(reasonRefused, "%q is not a state of a member", c.State)
	}
	m.State = c.State
	return true, nil
}

const lastDataMember = "%s is the last node that keeps mail: a cluster without one is none; let another node join first"

func (s *state) remove(c remove) (bool, *refusal) {
	m, refused := s.member(c.Name)
	if refused != nil {
		return false, refused
	}
	if c.Drained != "" && m.ID != c.Drained {
		return false, notMember(c.Name+" with ID "+c.Drained, names(s.View))
	}
	if c.Drained != "" && m.State != ring.Draining {
		return false, refuse(reasonRefused, "%s is %s: it stays, because its drain was called off; 'chainmail drain-node %s' begins another one", c.Name, m.State, c.Name)
	}
	if m.Role == ring.Data && !s.stays(c.Name) {
		return false, refuse(reasonRefused, lastDataMember, c.Name)
	}
	s.View.Members = slices.DeleteFunc(s.View.Members, func(o ring.Member) bool { return o.Name == c.Name })
	s.startRotation(c.Key)
	return true, nil
}

func (s *state) move(c move) (bool, *refusal) {
	m, refused := s.member(c.Name)
	if refused != nil {
		return false, refused
	}
	after, refused := s.member(c.After)
	if refused != nil {
		return false, refused
	}
	for _, x := range []*ring.Member{m, after} {
		if x.Role != ring.Data {
			return false, refuse(reasonRefused, "%s is a witness: it has no place in the ring", x.Name)
		}
	}
	if c.Name == c.After {
		return false, refuse(reasonRefused, "%s cannot follow itself in the ring: name another node with --after", c.Name)
	}
	if s.View.Successor(c.After) == c.Name {
		return false, nil
	}
	moved := *m
	s.View.Members = slices.DeleteFunc(s.View.Members, func(o ring.Member) bool { return o.Name == c.Name })
	at := slices.IndexFunc(s.View.Members, func(o ring.Member) bool { return o.Name == c.After })
	s.View.Members = slices.Insert(s.View.Members, at+1, moved)
	return true, nil
}

func (s *state) update(c update) (bool, *refusal) {
	m, refused := s.member(c.Name)
	if refused != nil {
		return false, refused
	}
	if m.Addresses == c.Addresses && m.Version == c.Version {
		return false, nil
	}
	m.Addresses, m.Version = c.Addresses, c.Version
	return true, nil
}

// addToken keeps a token, and forgets those that expired long ago.
func (s *state) addToken(c addToken, now time.Time) {
	s.Tokens = slices.DeleteFunc(s.Tokens, func(t token) bool { return now.After(t.Expires.Add(keepToken)) })
	s.Tokens = append(s.Tokens, token{Hash: c.Hash, Expires: c.Expires})
	s.Tokens = s.Tokens[max(0, len(s.Tokens)-maxTokens):]
}

// join lets a node in. Asked again with the same token and key it answers the
// same, so that a joiner that was killed may repeat itself.
func (s *state) join(c join, now time.Time, r *result) (bool, *refusal) {
	t, refused := s.usable(c, now)
	if refused != nil {
		return false, refused
	}
	if t.Key != "" {
		r.Certificate = t.Certificate
		return false, nil
	}
	if err := ring.CheckName(c.Member.Name); err != nil {
		return false, refuse(reasonRefused, "%v", err)
	}
	if refused := s.admit(c); refused != nil {
		return false, refused
	}
	t.Key, t.Name, t.Certificate = c.Key, c.Member.Name, c.Certificate
	r.Certificate = c.Certificate
	return true, nil
}

// usable finds the token of a join, or says what is wrong with it.
func (s *state) usable(c join, now time.Time) (*token, *refusal) {
	i := slices.IndexFunc(s.Tokens, func(t token) bool { return t.Hash == c.Token })
	if i < 0 {
		return nil, refuse(reasonToken, "join token %s is not known to this cluster: get a new one with 'chainmail token join' on any member", c.Label)
	}
	t := &s.Tokens[i]
	m, err := s.member(c.Member.Name)
	switch {
	case t.Key == c.Key && t.Name == c.Member.Name && err == nil && slices.Contains(m.Certificates, hexHash(t.Certificate)):
		return t, nil // the same joiner again; whether the token expired since does not matter
	case t.Key == c.Key && t.Name == c.Member.Name:
		return nil, refuse(reasonToken, "join token %s was used for %s, which was removed or replaced since: get a new one with 'chainmail token join' on any member", c.Label, t.Name)
	case t.Key != "":
		return nil, refuse(reasonToken, "join token %s was used for %s already: a token lets one node join; get a new one with 'chainmail token join' on any member", c.Label, t.Name)
	case now.After(t.Expires):
		return nil, refuse(reasonToken, "join token %s expired at %s: get a new one with 'chainmail token join' on any member", c.Label, t.Expires.UTC().Format(time.RFC3339))
	}
	return t, nil
}

// admit gives the joiner its place: at the end of the ring, or where the one
// was that it replaces.
func (s *state) admit(c join) *refusal {
	old, missing := s.member(c.Member.Name)
	switch {
	case missing != nil && c.Replace:
		return refuse(reasonNotMember, "there is no member %s to replace: its members are %s; leave --replace out to join as a new one", c.Member.Name, strings.Join(names(s.View), ", "))
	case missing == nil && !c.Replace:
		return refuse(reasonNameTaken, "the name %s is taken by a member: choose another with --name, or --replace to take the place of that member, whose disk is lost", c.Member.Name)
	case missing == nil && old.Role != c.Member.Role:
		return refuse(reasonRefused, "%s is a %s member and cannot be replaced by a %s member: remove it first", old.Name, old.Role, c.Member.Role)
	case missing == nil:
		*old = c.Member
		s.startRotation(c.GossipKey)
		return nil
	}
	s.View.Members = append(s.View.Members, c.Member)
	return nil
}

func (s *state) rotate(c rotate) (bool, *refusal) {
	if s.Gossip.Phase != steady {
		return false, refuse(reasonRefused, "a rotation of the keys is under way since epoch %d: it ends when every live node has the new keys; 'chainmail status' shows them", s.Gossip.Since)
	}
	s.startRotation(c.Key)
	s.Renew = s.View.Epoch + 1
	return true, nil
}

// startRotation adds a gossip key; in the middle of a rotation the new key
// takes the place of the other one that is on its way in or out.
func (s *state) startRotation(key []byte) {
	s.Gossip.Keys = [][]byte{s.Gossip.Keys[0], key}
	s.Gossip.Phase, s.Gossip.Since = adding, s.View.Epoch+1
}

// nextPhase moves the rotation on, unless it has moved already.
func (s *state) nextPhase(c keysPhase) bool {
	g := &s.Gossip
	if g.Phase != c.From || g.Since != c.Since {
		return false
	}
	switch g.Phase {
	case adding:
		g.Keys, g.Phase = [][]byte{g.Keys[1], g.Keys[0]}, using
	case using:
		g.Keys, g.Phase = g.Keys[:1], steady
	default:
		return false
	}
	g.Since = s.View.Epoch + 1
	return true
}

func (s *state) renewed(c renewed) (bool, *refusal) {
	m, refused := s.member(c.Name)
	if refused != nil {
		return false, refused
	}
	if m.ID != c.ID || len(c.Certificates) == 0 {
		return false, notMember(c.Name+" with ID "+c.ID, names(s.View))
	}
	if slices.Equal(m.Certificates, c.Certificates) {
		return false, nil
	}
	m.Certificates = c.Certificates
	return true, nil
}

// epochLeap is added to the epoch by a recovery: others may have committed
// changes that this node never heard of, and no epoch may name two views.
const epochLeap = 1000

func (s *state) recoverOne(c recoverOne) (bool, *refusal) {
	m, refused := s.member(c.Name)
	if refused != nil {
		return false, refused
	}
	if m.Role != ring.Data {
		return false, refuse(reasonRefused, "%s is a witness and holds no mail: recover on a node that does", c.Name)
	}
	m.State = ring.Active
	s.View.Members = []ring.Member{*m}
	s.View.Epoch += epochLeap
	s.Gossip = gossipKeys{Keys: [][]byte{c.Key}, Phase: steady, Since: s.View.Epoch + 1}
	return true, nil
}
