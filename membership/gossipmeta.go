package membership

import (
	"encoding/json"
	"net"

	"github.com/hashicorp/memberlist"

	"chainmail/membership/ring"
)

// gossipMeta is what each node says of itself: at most 512 bytes of JSON.
type gossipMeta struct {
	ID      string     `json:"i"`
	Role    ring.Role  `json:"r"`
	Version string     `json:"v"`
	Epoch   ring.Epoch `json:"e"`
	// Addresses are where the node is reached now, those that there was room
	// for. The view follows when there is a leader, and without them there may
	// never be one: of two voters, the one that stayed must find the one that
	// moved.
	Addresses ring.Addresses `json:"a,omitzero"`
}

// maxVersion keeps the meta short, whatever a build is called.
const maxVersion = 100

// encodeMeta leaves out those addresses for which the limit, in bytes, has no
// room; those that an election needs go last.
func encodeMeta(meta gossipMeta, limit int) []byte {
	meta.Version = meta.Version[:min(len(meta.Version), maxVersion)]
	a := &meta.Addresses
	for _, next := range []*string{&a.SMTP, &a.HTTP, &a.Chain, &a.Gossip, &a.Raft, nil} {
		b, err := json.Marshal(meta)
		if err == nil && len(b) <= limit {
			return b
		}
		if next != nil {
			*next = ""
		}
	}
	return nil
}

func decodeMetaOf(n *memberlist.Node) (gossipMeta, error) {
	var meta gossipMeta
	err := json.Unmarshal(n.Meta, &meta)
	return meta, err
}

// SetAdvertised says where the others reach this node now. They are told at
// once, by gossip, and the view's entry follows when there is a leader. The
// zero value keeps what the view says.
func (m *Membership) SetAdvertised(a ring.Addresses) {
	if old := m.advertised.Swap(&a); *old == a {
		return
	}
	m.gossip.tellAgain()
	m.changed.fire()
}

// AddressOf is where a member is reached: what the view says, and over it what
// the member, while it is alive, says of itself. Nothing for who is not in the
// view. That gossip may be forged by other members does no harm: whoever
// answers at an address must have the certificate of the member that is meant.
func (m *Membership) AddressOf(name string) ring.Addresses {
	member, ok := m.View().Member(name)
	switch {
	case !ok:
		return ring.Addresses{}
	case member.ID == m.id:
		return overlay(member.Addresses, *m.advertised.Load())
	}
	return overlay(member.Addresses, m.gossip.addresses(name, member.ID))
}

// overlay puts the addresses that said has, and that are any, over those of the
// view.
func overlay(view, said ring.Addresses) ring.Addresses {
	for _, x := range []struct {
		to   *string
		said string
	}{
		{&view.SMTP, said.SMTP},
		{&view.Chain, said.Chain},
		{&view.Gossip, said.Gossip},
		{&view.Raft, said.Raft},
		{&view.HTTP, said.HTTP},
	} {
		if host, port, err := net.SplitHostPort(x.said); err == nil && host != "" && port != "" {
			*x.to = x.said
		}
	}
	return view
}

// addresses are what a live member says of itself.
func (g *gossip) addresses(name, id string) ring.Addresses {
	g.mu.Lock()
	defer g.mu.Unlock()
	if p := g.peers[id]; p.alive && p.name == name {
		return p.meta.Addresses
	}
	return ring.Addresses{}
}
