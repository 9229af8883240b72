package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"chainmail/archive/record"
	"chainmail/membership"
	"chainmail/membership/ring"
	"chainmail/node/api"
	"chainmail/node/httpd"
)

// clusterDoor gives HTTP the cluster: what it shows, and the changes that
// people ask for, each looked at before it is made.
type clusterDoor struct{ *Node }

// Cluster is the cluster as this node sees it.
func (d clusterDoor) Cluster(ctx context.Context) (api.Cluster, error) {
	return d.cluster(ctx), nil
}

// CA is the certificate of the cluster's authority, in PEM.
func (d clusterDoor) CA() []byte { return d.members.CA() }

// Sync is whether this node holds all that it should.
func (d clusterDoor) Sync() api.Sync {
	if d.witness() {
		return api.Sync{InSync: true, Lacks: new(uint64)}
	}
	b := d.chain.Status().Backlog
	if b == nil {
		return api.Sync{Reason: "what the node lacks is not known: no other member has told yet what there is"}
	}
	lacks := b.Receipts - b.InFlight // what is on its way is nothing to tell of
	s := api.Sync{InSync: lacks == 0, Lacks: &lacks, Lost: b.Lost}
	if !s.InSync {
		s.Reason = fmt.Sprintf("it lacks %s that it should hold", receipts(lacks))
	}
	return s
}

// Self is what this node tells its peers.
func (d clusterDoor) Self(context.Context) (api.SelfReport, error) { return d.self(), nil }

// Join lets a node in.
func (d clusterDoor) Join(ctx context.Context, r api.JoinRequest) (any, error) {
	answer, err := d.members.Admit(ctx, r)
	return answer, refused(err)
}

// JoinToken makes a secret by which one node may join.
func (d clusterDoor) JoinToken(ctx context.Context, valid time.Duration) (api.JoinToken, error) {
	t, err := d.members.NewJoinToken(ctx, valid)
	return t, refused(err)
}

// SetPolicies changes what is the same on every node.
func (d clusterDoor) SetPolicies(ctx context.Context, p api.PolicyChange) (api.Changed, error) {
	epoch, err := d.members.SetPolicies(ctx, p)
	return changed(epoch, err, "the policies hold from epoch %d on")
}

// RotateKeys begins to replace the keys.
func (d clusterDoor) RotateKeys(ctx context.Context) (api.Changed, error) {
	epoch, err := d.members.RotateKeys(ctx)
	return changed(epoch, err, "the keys are being replaced since epoch %d; it goes on by itself, and status tells when it is done")
}

// Move gives a member another place in the ring.
func (d clusterDoor) Move(ctx context.Context, name, after string) (api.Changed, error) {
	epoch, err := d.members.Move(ctx, name, after)
	return changed(epoch, err, name+" follows "+after+" in the ring from epoch %d on; new mail goes that way, and history stays where it has its replicas")
}

// Drain lets a member hand over what it holds, and leave.
func (d clusterDoor) Drain(ctx context.Context, name string) (api.Changed, error) {
	view := d.members.View()
	m, ok := view.Member(name)
	others := slices.DeleteFunc(view.Ring(), func(n string) bool {
		o, _ := view.Member(n)
		return n == name || o.State == ring.Draining
	})
	switch {
	case !ok:
		return api.Changed{}, noMember(view, name)
	case m.Role == ring.Witness:
		return api.Changed{}, conflict(name+" is a witness: it holds nothing to hand over", "stop it, then remove it with 'chainmail remove-node %s'", name)
	case m.State == ring.Draining:
		return api.Changed{Epoch: uint64(view.Epoch), Message: name + " is being drained already"}, nil
	case len(others) == 0:
		return api.Changed{}, conflict("no other node would keep the mail of "+name, "let another node join first, see 'chainmail token join'")
	}
	for _, o := range view.Members {
		if o.State == ring.Draining {
			return api.Changed{}, conflict(o.Name+" is being drained: one change at a time", "wait until it has left, see 'chainmail status'")
		}
	}
	epoch, err := d.members.SetState(ctx, name, ring.Draining)
	return changed(epoch, err, name+" leaves since epoch %d: it takes mail a while more, so that balancers lead its clients elsewhere, hands over what others must keep, and then goes by itself")
}

// CancelDrain lets a member that drains stay.
func (d clusterDoor) CancelDrain(ctx context.Context, name string) (api.Changed, error) {
	view := d.members.View()
	switch m, ok := view.Member(name); {
	case !ok:
		return api.Changed{}, noMember(view, name)
	case m.State != ring.Draining:
		return api.Changed{}, conflict(fmt.Sprintf("%s is not being drained, it is %s", name, m.State), "see 'chainmail status'")
	}
	epoch, err := d.members.SetState(ctx, name, ring.Active)
	return changed(epoch, err, name+" stays, and takes mail again from epoch %d on")
}

// Remove takes a member out that will not come back.
func (d clusterDoor) Remove(ctx context.Context, name, force string) (api.Changed, error) {
	view := d.members.View()
	if _, ok := view.Member(name); !ok {
		return api.Changed{}, noMember(view, name)
	}
	held := d.held()
	logs, known := held[name]
	delete(held, name)
	reasons := ring.RemoveRefusal(ring.RemoveQuestion{
		View: view, Name: name, Alive: d.members.Alive(name), Known: known, Force: force == name,
		Logs: d.atRisk(view, name, logs, held),
	})
	if len(reasons) > 0 {
		return api.Changed{}, conflict(strings.Join(reasons, "; "), "see docs/operations.md about members that are gone")
	}
	epoch, err := d.members.Remove(ctx, name)
	return changed(epoch, err, name+" is no member from epoch %d on; the others copy among themselves what it kept")
}

// tokens give HTTP the cluster's API tokens.
type tokens struct{ *Node }

// Check finds the token whose secret a client has sent.
func (t tokens) Check(secret string) (api.Token, error) { return t.members.CheckAPIToken(secret) }

// List is every API token there is.
func (t tokens) List() []api.Token { return t.members.APITokens() }

// Make makes an API token for all nodes. It returns when they know it: behind a
// balancer nobody chooses which of them answers.
func (t tokens) Make(ctx context.Context, r api.TokenRequest) (api.Token, error) {
	made, err := t.members.AddAPIToken(ctx, r.Name, r.Scope, r.ExpiresAt)
	if err == nil {
		t.unaware(ctx)
	}
	return made, refused(err)
}

// tellTimeout is how long a change waits until all members know of it. They say
// so by gossip, several times a second.
const tellTimeout = 2 * time.Second

// unaware waits until all living members know what this node knows of the
// cluster, and returns those that do not.
func (t tokens) unaware(ctx context.Context) (names []string) {
	view, began := t.members.View(), time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		names = names[:0]
		waiting := false
		for _, m := range view.Members {
			if l := t.members.Liveness(m.Name); !l.Alive || l.Epoch < view.Epoch {
				names = append(names, m.Name)
				waiting = waiting || l.Alive
			}
		}
		if !waiting || time.Since(began) > tellTimeout {
			return names
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return names
		}
	}
}

// Revoke ends an API token, and names the members that have not heard of it.
func (t tokens) Revoke(ctx context.Context, id string) (api.Changed, error) {
	epoch, err := t.members.RevokeAPIToken(ctx, id)
	if err != nil {
		return api.Changed{}, refused(err)
	}
	message := fmt.Sprintf("token %s opens nothing any more since epoch %d", id, epoch)
	if deaf := t.unaware(ctx); len(deaf) > 0 {
		message += "; not reached, and to be told when they are back: " + strings.Join(deaf, ", ")
	}
	return api.Changed{Epoch: uint64(epoch), Message: message}, nil
}

// settleTime is how long it takes until it is known of a receipt that it has
// its copies: nodes that are not in a hurry tell each other once a second.
const settleTime = 3 * time.Second

// SafeToStop tells whether a member may be stopped for a while. It is about
// the mail that the member held when it was asked, and waits a moment for the
// copies of it: under load there is always some that is on its way.
func (d clusterDoor) SafeToStop(ctx context.Context, name string) (api.SafeToStop, error) {
	view := d.members.View()
	if _, ok := view.Member(name); !ok {
		return api.SafeToStop{}, noMember(view, name)
	}
	logs := d.held()[name]
	states := map[string]string{}
	for _, m := range d.cluster(ctx).Members {
		if m.Self != nil {
			states[m.Name] = m.Self.State
		}
	}
	q := ring.StopQuestion{
		View: view, Name: name, Alive: d.members.Alive, Voters: d.members.Voters(),
		Takes: func(n string) bool { return states[n] == api.StateActive || states[n] == api.StateJoining },
	}
	hopeless := len(ring.SafeToStop(q)) > 0 // whatever becomes of the mail
	for deadline := time.Now().Add(settleTime); ; {
		held := d.held()
		delete(held, name)
		q.Logs = d.atRisk(view, name, logs, held)
		reasons := ring.SafeToStop(q)
		if len(reasons) == 0 || hopeless || !time.Now().Before(deadline) {
			return api.SafeToStop{Name: name, Safe: len(reasons) == 0, Reasons: reasons}, nil
		}
		select {
		case <-ctx.Done():
			return api.SafeToStop{}, ctx.Err()
		case <-time.After(settleTime / 20):
		}
	}
}

// atRisk is what would be out of reach without a node that holds logs, where
// the others that are alive hold what held says.
func (d clusterDoor) atRisk(view ring.View, name string, logs []record.Log, held map[string][]record.Log) []ring.AtRisk {
	var all []ring.AtRisk
	for _, l := range logs {
		risk := ring.AtRisk{Log: l.Store.String()}
		for _, span := range l.Spans() {
			mine := l.Held.Intersect(record.Ranges{span.Range})
			var others []record.Ranges
			for _, keeper := range view.Keepers(l.Origin, span.Nodes) {
				theirs, known := held[keeper]
				switch {
				case keeper == name || !d.members.Alive(keeper):
				case !known:
					risk.Unknown = true
				default:
					others = append(others, heldBy(theirs, l.Store))
				}
			}
			once, enough := heldTimes(mine, others, max(1, min(view.Policies.Copies, len(others))))
			risk.Only += mine.Minus(once).Count()
			risk.Few += once.Minus(enough).Count()
		}
		all = append(all, risk)
	}
	return all
}

// heldTimes is what of mine is held by at least one, and by at least n, of the
// others.
func heldTimes(mine record.Ranges, others []record.Ranges, n int) (once, times record.Ranges) {
	levels := make([]record.Ranges, n+1) // what at least i of those seen so far hold
	levels[0] = mine
	for _, o := range others {
		for i := n; i > 0; i-- {
			levels[i] = levels[i].Union(levels[i-1].Intersect(o))
		}
	}
	return levels[1], levels[n]
}

// held is what each data member holds, by its own last word; those that never
// spoke are missing.
func (d clusterDoor) held() map[string][]record.Log {
	held := map[string][]record.Log{}
	if !d.witness() {
		held = d.known()
		held[d.config.Name] = d.archive.Logs()
	}
	return held
}

func noMember(view ring.View, name string) error {
	var names []string
	for _, m := range view.Members {
		names = append(names, m.Name)
	}
	return &httpd.StatusError{Code: http.StatusNotFound, Text: fmt.Sprintf("%q is not a member of this cluster", name), Hint: "its members are " + strings.Join(names, ", ")}
}

func conflict(text, hint string, a ...any) error {
	return &httpd.StatusError{Code: http.StatusConflict, Text: text, Hint: fmt.Sprintf(hint, a...)}
}

// changed answers a change that was made, or says why it was not.
func changed(epoch ring.Epoch, err error, message string) (api.Changed, error) {
	if err != nil {
		return api.Changed{}, refused(err)
	}
	return api.Changed{Epoch: uint64(epoch), Message: fmt.Sprintf(message, epoch)}, nil
}

// refused gives a failed change its HTTP status.
func refused(err error) error {
	code := http.StatusInternalServerError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, membership.ErrToken):
		code = http.StatusForbidden
	case errors.Is(err, membership.ErrNotMember), errors.Is(err, membership.ErrNoAPIToken):
		code = http.StatusNotFound
	case errors.Is(err, membership.ErrRefused):
		code = http.StatusConflict
	case errors.Is(err, membership.ErrNoQuorum), errors.Is(err, membership.ErrUnknownOutcome):
		code = http.StatusServiceUnavailable
	}
	return &httpd.StatusError{Code: code, Text: err.Error()}
}
