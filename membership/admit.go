package membership

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"chainmail/membership/ring"
	"chainmail/node/api"
)

// admission is the answer to a joiner.
type admission struct {
	State       state  `json:"state"` // without tokens
	ID          string `json:"id"`    // of the new member
	Certificate []byte `json:"certificate"`
}

// Admit is the server's side of Join: it lets a node in that has a join token,
// and returns the JSON to answer it with. Any member may be asked; the leader
// decides. The same joiner may ask again and is given the same.
func (m *Membership) Admit(ctx context.Context, r api.JoinRequest) (json.RawMessage, error) {
	if err := m.checkJoin(r); err != nil {
		return nil, err
	}
	a, err := m.ask(ctx, controlRequest{Join: &r})
	if err != nil {
		return nil, err
	}
	m.await(ctx, a.Result.Epoch) // the joiner is known here when it connects
	return a.Admission, nil
}

// addressesOf reads the addresses of a request; a member needs them all.
func addressesOf(role ring.Role, given map[string]string) (ring.Addresses, error) {
	a := ring.Addresses{SMTP: given["smtp"], Chain: given["chain"], Gossip: given["gossip"], Raft: given["raft"], HTTP: given["http"]}
	need := map[string]string{"gossip": a.Gossip, "raft": a.Raft, "http": a.HTTP}
	if role == ring.Data {
		need["smtp"], need["chain"] = a.SMTP, a.Chain
	} else {
		a.SMTP, a.Chain = "", ""
	}
	for what, addr := range need {
		host, port, err := net.SplitHostPort(addr)
		if err != nil || host == "" || port == "" || port == "0" {
			return a, fmt.Errorf("the address %q for %s cannot be reached by the other members: give host:port with --%s, or --advertise-%s", addr, what, what, what)
		}
	}
	return a, nil
}

// checkJoin looks at what needs no leader.
func (m *Membership) checkJoin(r api.JoinRequest) error {
	t, err := parseToken(r.Token)
	if err != nil {
		return refuse(reasonToken, "%v", err)
	}
	if t.CA != m.current.Load().CA.fingerprint() {
		return refuse(reasonToken, "join token %s belongs to another cluster: get one with 'chainmail token join' on a member of this one", t.Name())
	}
	if err := ring.CheckName(r.Name); err != nil {
		return refuse(reasonRefused, "%v", err)
	}
	if role := ring.Role(r.Role); role != ring.Data && role != ring.Witness {
		return refuse(reasonRefused, "%q is not a role of a member: want %q or %q", r.Role, ring.Data, ring.Witness)
	}
	if _, err := addressesOf(ring.Role(r.Role), r.Addresses); err != nil {
		return refuse(reasonRefused, "%v", err)
	}
	if _, err := parseCSR(r.CSR); err != nil {
		return refuse(reasonRefused, "%v", err)
	}
	return nil
}

// admit lets a node in, on the leader.
func (m *Membership) admit(c *consensus, r api.JoinRequest) (controlAnswer, error) {
	j, err := m.prepareJoin(c, r)
	if err != nil {
		return controlAnswer{}, err
	}
	res, err := m.commit(c, command{ID: newID(), Join: &j})
	if err != nil || res.Refused != nil {
		return controlAnswer{Result: res}, err
	}
	s := c.fsm.get()
	s.Tokens, s.Done = nil, nil
	leaf, err := parseLeaf(res.Certificate)
	if err != nil {
		return controlAnswer{}, err
	}
	id, _, _ := certified(leaf)
	b, err := json.Marshal(admission{State: s, ID: id, Certificate: res.Certificate})
	if err != nil {
		return controlAnswer{}, err
	}
	m.log.Info("node admitted", "peer", j.Member.Name, "role", string(j.Member.Role), "replace", j.Replace)
	return controlAnswer{Result: res, Admission: b}, nil
}

// prepareJoin decides all that is random or depends on this moment.
func (m *Membership) prepareJoin(c *consensus, r api.JoinRequest) (join, error) {
	if err := m.checkJoin(r); err != nil { // the member that forwarded it may run another version
		return join{}, err
	}
	t, err := parseToken(r.Token)
	if err != nil {
		return join{}, err
	}
	key, err := csrKey(r.CSR)
	if err != nil {
		return join{}, err
	}
	role := ring.Role(r.Role)
	addresses, err := addressesOf(role, r.Addresses)
	if err != nil {
		return join{}, err
	}
	member := ring.Member{
		Name: r.Name, ID: newID(), Role: role, State: ring.Joining,
		Addresses: addresses, Version: r.Version, JoinedAt: time.Now().UTC(),
	}
	if role == ring.Witness {
		member.State = ring.Active // it has nothing to catch up
	}
	j := join{Token: t.Hash(), Label: t.Name(), Key: key, Replace: r.Replace, Member: member}
	if r.Replace {
		j.GossipKey = newGossipKey()
	}
	s := c.fsm.get()
	known, refused := s.usable(j, time.Now())
	if refused != nil {
		return join{}, refused
	}
	if r.Replace && known.Key == "" && m.Alive(r.Name) {
		return join{}, refuse(reasonRefused, "%s is alive and cannot be replaced: stop it first, or choose another name", r.Name)
	}
	j.Certificate, err = s.CA.sign(r.CSR, member.Name, member.ID, s.View.Epoch+1)
	if err != nil {
		return join{}, err
	}
	j.Member.Certificates = []string{hexHash(j.Certificate)}
	return j, nil
}

// renew signs a member's new key, on the leader.
func (m *Membership) renew(c *consensus, q renewRequest, by asking) (controlAnswer, error) {
	s := c.fsm.get()
	member, ok := s.View.Member(by.member.Name)
	if !ok || member.ID != by.member.ID {
		return controlAnswer{}, notMember(by.member.Name, names(s.View))
	}
	if q.InUse != by.certificate {
		return controlAnswer{}, errors.New("a member may renew only the certificate that it uses")
	}
	leaf, err := s.CA.sign(q.CSR, member.Name, member.ID, s.View.Epoch+1)
	if err != nil {
		return controlAnswer{}, err
	}
	r, err := m.commit(c, command{ID: newID(), Renewed: &renewed{Name: member.Name, ID: member.ID, Certificates: []string{q.InUse, hexHash(leaf)}}})
	r.Certificate = leaf
	return controlAnswer{Result: r}, err
}
