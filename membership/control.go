package membership

import (
	"context"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"chainmail/membership/ring"
	"chainmail/node/api"
)

// controlRequest is what one member asks of another over the raft port; exactly
// one field is set. Each of them may be repeated: a change has an ID, a join its
// token and key, a renewal ends in the certificates that it names.
//
//	4 bytes  length of the JSON, big endian
//	JSON     a controlRequest; the answer is a controlAnswer in the same form
type controlRequest struct {
	Change *command         `json:"change,omitempty"`
	Join   *api.JoinRequest `json:"join,omitempty"`
	Renew  *renewRequest    `json:"renew,omitempty"`
}

// renewRequest asks for a certificate for a new key.
type renewRequest struct {
	CSR []byte `json:"csr"`
	// InUse is the certificate that stays valid beside the new one.
	InUse string `json:"in_use"`
}

// controlAnswer is the leader's answer.
type controlAnswer struct {
	NotLeader bool `json:"not_leader,omitempty"` // ask somebody else
	// Unknown: it was handed over, but nobody knows whether it was committed.
	Unknown bool   `json:"unknown,omitempty"`
	Error   string `json:"error,omitempty"`
	Result  result `json:"result"`
	// Admission answers a join.
	Admission json.RawMessage `json:"admission,omitempty"`
	// View answers a member that removed itself: the one without it.
	View *ring.View `json:"view,omitempty"`
}

// maxControl bounds a request or an answer, in bytes: an admission holds the
// whole state.
const maxControl = maxState + 1<<20

// controlTimeout bounds the leader's work on a request.
const controlTimeout = waitNoQuorum + 500*time.Millisecond

func writeControl(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > maxControl {
		return fmt.Errorf("a control message of %d bytes is more than %d", len(b), maxControl)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

func readControl(r io.Reader, limit uint32, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > limit {
		return fmt.Errorf("a control message of %d bytes is more than %d", n, limit)
	}
	b, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return err
	}
	if len(b) < int(n) {
		return io.ErrUnexpectedEOF
	}
	return json.Unmarshal(b, v)
}

// maxRequest bounds a request, in bytes: changes and joins are small.
const maxRequest = 1 << 20

// readRequest reads a request and checks its form.
func readRequest(r io.Reader) (controlRequest, error) {
	var q controlRequest
	if err := readControl(r, maxRequest, &q); err != nil {
		return q, err
	}
	kinds := 0
	for _, set := range []bool{q.Change != nil, q.Join != nil, q.Renew != nil} {
		if set {
			kinds++
		}
	}
	if kinds != 1 {
		return q, fmt.Errorf("a control request asks for one thing, not %d: the other node may run a newer version", kinds)
	}
	return q, nil
}

// asking is the member that makes a request, and the certificate it uses.
type asking struct {
	member      ring.Member
	certificate string
}

func (m *Membership) selfPeer() asking {
	member := ring.Member{Name: m.name, ID: m.id}
	return asking{member, m.identity.Load().fingerprint()}
}

// serveControl answers one request of a member.
func (m *Membership) serveControl(ctx context.Context, conn net.Conn, peer ring.Member, cert *x509.Certificate) {
	_ = conn.SetDeadline(time.Now().Add(2 * controlTimeout))
	q, err := readRequest(conn)
	if err != nil {
		m.log.Warn("control request not understood", "peer", peer.Name, "err", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	answer := controlAnswer{NotLeader: true}
	if c := m.raft(); c != nil && c.leading() {
		answer, err = m.lead(ctx, c, q, asking{peer, hexHash(cert.Raw)})
		if refused, ok := errors.AsType[*refusal](err); ok {
			answer.Result.Refused = refused
		} else if err != nil {
			answer.Error = err.Error()
			answer.Unknown = errors.Is(err, ErrUnknownOutcome)
			answer.NotLeader = errors.Is(err, errNoLeader)
		}
	}
	if err := writeControl(conn, answer); err != nil {
		m.log.Debug("control answer not delivered", "peer", peer.Name, "err", err)
	}
}

// errNotReached: the request was not sent.
var errNotReached = errors.New("not reached")

// callControl puts a request to a member. Once it was sent, every failure
// leaves the outcome unknown.
func (m *Membership) callControl(ctx context.Context, id string, q controlRequest) (controlAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	dialCtx, cancelDial := context.WithTimeout(ctx, transportTimeout/2)
	defer cancelDial()
	conn, err := m.port.dial(dialCtx, id, speaksControl)
	if err != nil {
		return controlAnswer{}, fmt.Errorf("%w: %w", errNotReached, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var a controlAnswer
	if err = writeControl(conn, q); err == nil {
		err = readControl(conn, maxControl, &a)
	}
	switch {
	case err != nil:
		return a, fmt.Errorf("%w: %s took the change and did not answer: %w", ErrUnknownOutcome, m.nameOf(id), err)
	case a.Unknown:
		return a, fmt.Errorf("%w: %s", ErrUnknownOutcome, a.Error)
	case a.Error != "" && !a.NotLeader:
		return a, errors.New(a.Error)
	}
	return a, nil
}

// lead does what a request asks for, on the leader.
func (m *Membership) lead(ctx context.Context, c *consensus, q controlRequest, by asking) (controlAnswer, error) {
	switch {
	case q.Change != nil:
		if q.Change.Remove != nil {
			return m.leadRemoval(c, *q.Change, by)
		}
		r, err := m.commit(c, *q.Change)
		return controlAnswer{Result: r}, err
	case q.Join != nil:
		return m.admit(c, *q.Join)
	case q.Renew != nil:
		return m.renew(c, *q.Renew, by)
	}
	return controlAnswer{}, ctx.Err()
}

// leadRemoval removes a member, on the leader.
func (m *Membership) leadRemoval(c *consensus, cmd command, by asking) (controlAnswer, error) {
	if cmd.Remove.Name == m.name {
		return m.leaveLead(c, cmd)
	}
	r, err := m.commit(c, cmd)
	a := controlAnswer{Result: r}
	if err != nil || r.Refused != nil {
		return a, err
	}
	// Before the answer, for a member that removes itself stops when it has it.
	// Of two voters, the one that stays could not change Raft's configuration
	// without the other's vote.
	m.reconcile(c)
	if by.member.Name == cmd.Remove.Name {
		v := c.fsm.get().View
		a.View = &v
	}
	return a, nil
}

// leaveLead hands the lead over before this node, the leader, is removed: the
// next leader is asked again. A removal that would be refused leaves the lead
// where it is.
func (m *Membership) leaveLead(c *consensus, cmd command) (controlAnswer, error) {
	if err := c.raft.Barrier(waitNoQuorum).Error(); err != nil {
		return controlAnswer{}, fmt.Errorf("%w: %w", errNoLeader, err)
	}
	if _, r := c.fsm.get().apply(cmd); r.Refused != nil {
		return controlAnswer{}, r.Refused
	}
	if err := c.raft.LeadershipTransfer().Error(); err != nil {
		return controlAnswer{}, fmt.Errorf("%w: %w", errNoLeader, err)
	}
	return controlAnswer{}, errNoLeader
}
