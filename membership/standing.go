package membership

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"chainmail/membership/ring"
)

// A node that was removed while it was down or cut off cannot learn it from
// Raft or gossip: the members talk to it no more, and refuse its certificate. A
// refusal alone proves nothing, because a member that is behind refuses a
// newcomer too. So the node asks the members that it knows how it stands with
// them, by a TLS protocol of its own on the raft port, which answers everybody
// who ever had a certificate of the cluster's CA with one standing.

// standingALPN names that protocol.
const standingALPN = "chainmail-standing/1"

// standing is what a member says of the node that asks. That node is removed
// if the epoch is higher than that of its own view: an ID never comes back.
type standing struct {
	Cluster string     `json:"cluster"`
	Epoch   ring.Epoch `json:"epoch"`
	Member  bool       `json:"member"` // its ID is in the view of this epoch
}

// maxStanding bounds the JSON of a standing, in bytes.
const maxStanding = 4096

// Pauses between the rounds of questions.
const (
	standingEvery = 5 * time.Second
	standingLeast = time.Second // after a refusal
)

// Removed reports whether this node is no member of its cluster any more: its
// own view is without it, or another member with a later view says so. Then it
// stays so until the node has joined again, by Join and Open. Changed tells of
// it. It never blocks.
func (m *Membership) Removed() bool { return m.removed.Load() }

func (m *Membership) setRemoved() {
	m.removed.Store(true)
	m.note(aboutMembership, m.name+" is no longer a member of its cluster: it was removed or replaced; to come back with its mail, 'chainmail join-node' with a token of a member")
}

func hasID(v ring.View, id string) bool {
	return slices.ContainsFunc(v.Members, func(x ring.Member) bool { return x.ID == id })
}

// isRefusal reports whether an error says that the peer takes this node for a
// stranger. TLS 1.3 tells that to a client only when it reads.
func isRefusal(err error) bool {
	return err != nil && strings.Contains(err.Error(), "tls: bad certificate")
}

// noteRefusal has the members asked when an error is a refusal.
func (m *Membership) noteRefusal(err error) {
	if !isRefusal(err) {
		return
	}
	select {
	case m.doubt <- struct{}{}:
	default:
	}
}

// runStanding asks the members how this node stands with them, as long as it
// has reason to: they refuse it, or there is no leader; and those that do not
// seem alive, because they may be alive without it.
func (m *Membership) runStanding(ctx context.Context) {
	doubt := false
	for ctx.Err() == nil && !m.Removed() {
		var wg sync.WaitGroup
		for _, member := range m.View().Members {
			if member.ID != m.id && (doubt || !m.Quorum() || !m.Alive(member.Name)) {
				wg.Go(func() { m.learnStanding(ctx, member.Name) })
			}
		}
		wg.Wait()
		doubt = m.awaitDoubt(ctx)
	}
}

// awaitDoubt waits until it is time to ask again, and reports whether that is
// because of a refusal.
func (m *Membership) awaitDoubt(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(standingLeast):
	}
	select {
	case <-ctx.Done():
	case <-time.After(standingEvery - standingLeast):
	case <-m.doubt:
		return true
	}
	return false
}

func (m *Membership) learnStanding(ctx context.Context, peer string) {
	s, err := m.askStanding(ctx, peer)
	if err != nil {
		m.log.Debug("a member does not say how this node stands with it", "peer", peer, "err", err)
		return
	}
	view := m.View()
	if s.Cluster != view.Cluster || s.Epoch <= view.Epoch || s.Member {
		return
	}
	m.log.Info("a member says that this node is none any more", "peer", peer, "epoch", uint64(s.Epoch), "own_epoch", uint64(view.Epoch))
	m.setRemoved()
}

// askStanding asks one member, who proves by its certificate that it is one.
func (m *Membership) askStanding(ctx context.Context, peer string) (standing, error) {
	ctx, cancel := context.WithTimeout(ctx, transportTimeout)
	defer cancel()
	raw, err := m.network.Dial(ctx, "tcp", m.AddressOf(peer).Raft)
	if err != nil {
		return standing{}, err
	}
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	config := m.ClientTLS(peer)
	config.NextProtos = []string{standingALPN}
	c := tls.Client(raw, config)
	if err := c.HandshakeContext(ctx); err != nil {
		return standing{}, err
	}
	if c.ConnectionState().NegotiatedProtocol != standingALPN {
		return standing{}, errors.New("it does not know the question: it runs another version")
	}
	var s standing
	return s, readControl(c, maxStanding, &s)
}

// standingTLS is for the question: whoever was certified may ask.
func (m *Membership) standingTLS() *tls.Config {
	c := m.baseTLS()
	c.NextProtos = []string{standingALPN}
	c.ClientAuth = tls.RequireAnyClientCert
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		return signedByCA(m.ca, cs.PeerCertificates[0])
	}
	return c
}

// serveStanding answers the question.
func (m *Membership) serveStanding(conn net.Conn, cs tls.ConnectionState) {
	id, _, ok := certified(cs.PeerCertificates[0])
	if !ok {
		return
	}
	_ = conn.SetDeadline(time.Now().Add(handshakeTimeout))
	view := m.View()
	if err := writeControl(conn, standing{Cluster: view.Cluster, Epoch: view.Epoch, Member: hasID(view, id)}); err != nil {
		m.log.Debug("standing not told", "client", conn.RemoteAddr().String(), "id", id, "err", err)
	}
}
