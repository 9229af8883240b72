package httpd

import (
	"context"
	"net/http"
	"time"

	"chainmail/membership/ring"
	"chainmail/node/api"
)

// Cluster is what the server asks of the cluster that its node is a member of.
// Errors may be a *StatusError.
type Cluster interface {
	ClusterViewer
	ClusterChanger
	ClusterKeeper
}

// ClusterViewer tells the state of the cluster.
type ClusterViewer interface {
	// Cluster is the cluster as this node sees it.
	Cluster(ctx context.Context) (api.Cluster, error)
	// CA is the certificate of the cluster's authority, in PEM.
	CA() []byte
	// Sync is whether this node holds all that it should. Whoever likes may ask,
	// so it must be cheap.
	Sync() api.Sync
	// Self is what this node tells its peers of itself.
	Self(ctx context.Context) (api.SelfReport, error)
	SafeToStop(ctx context.Context, name string) (api.SafeToStop, error)
	// Verify compares every log between its replicas. It calls report for
	// progress and for what differs, and leaves Done, Bad and Error to the server.
	Verify(ctx context.Context, report func(api.ClusterVerifyEvent)) error
}

// ClusterChanger changes members and policies. Each change is committed when
// it returns without an error.
type ClusterChanger interface {
	SetPolicies(ctx context.Context, change api.PolicyChange) (api.Changed, error)
	Drain(ctx context.Context, name string) (api.Changed, error)
	// CancelDrain lets a member that drains stay.
	CancelDrain(ctx context.Context, name string) (api.Changed, error)
	// Remove takes the dead out; force is the name again, or empty.
	Remove(ctx context.Context, name, force string) (api.Changed, error)
	Move(ctx context.Context, name, after string) (api.Changed, error)
}

// ClusterKeeper gives out certificates and keys.
type ClusterKeeper interface {
	// Join checks the token and answers with what the new member needs.
	Join(ctx context.Context, r api.JoinRequest) (any, error)
	JoinToken(ctx context.Context, valid time.Duration) (api.JoinToken, error)
	RotateKeys(ctx context.Context) (api.Changed, error)
}

// cluster is the node's cluster, or a 404.
func (s *Server) cluster() (Cluster, error) {
	if s.opts.Cluster == nil {
		return nil, notFound("this node is in no cluster").hint("it may still be starting, or have left: see 'chainmail status'")
	}
	return s.opts.Cluster, nil
}

func (s *Server) showCluster(w http.ResponseWriter, r *http.Request) error {
	c, err := s.cluster()
	if err != nil {
		return err
	}
	ask := c.Cluster
	if r.Header.Get("Authorization") != "" { // a program, which may ask often; people and nodes want to know it now
		ask = func(ctx context.Context) (api.Cluster, error) { return s.polls.get(ctx, c.Cluster) }
	}
	state, err := ask(r.Context())
	if err != nil {
		return err
	}
	state.Reasons, state.Voters, state.Members = list(state.Reasons), list(state.Voters), list(state.Members)
	state.Policies.Balancers = list(state.Policies.Balancers)
	for i, m := range state.Members {
		if m.Self != nil {
			self := *m.Self
			self.Logs = list(self.Logs)
			state.Members[i].Self = &self
		}
	}
	writeJSON(w, http.StatusOK, state)
	return nil
}

// showCA is open: the certificate is no secret, and who verifies a node needs it
// before it can have asked anything of it.
func (s *Server) showCA(w http.ResponseWriter, _ *http.Request) error {
	c, err := s.cluster()
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", pemType)
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(c.CA())
	return nil
}

const pemType = "application/x-pem-file"

func (s *Server) showSelf(w http.ResponseWriter, r *http.Request) error {
	c, err := s.cluster()
	if err != nil {
		return err
	}
	self, err := c.Self(r.Context())
	if err != nil {
		return err
	}
	self.Logs = list(self.Logs)
	writeJSON(w, http.StatusOK, self)
	return nil
}

func (s *Server) safeToStop(w http.ResponseWriter, r *http.Request) error {
	c, err := s.cluster()
	if err != nil {
		return err
	}
	answer, err := c.SafeToStop(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	answer.Reasons = list(answer.Reasons)
	writeJSON(w, http.StatusOK, answer)
	return nil
}

// verifyCluster streams api.ClusterVerifyEvent lines.
func (s *Server) verifyCluster(w http.ResponseWriter, r *http.Request) error {
	c, err := s.cluster()
	if err != nil {
		return err
	}
	run := s.newStream(w, r)
	defer run.end()
	var last api.ClusterVerifyEvent
	run.write(last, true) // the client sees at once that it began
	err = c.Verify(run.ctx, func(ev api.ClusterVerifyEvent) {
		last.Checked, last.Total = ev.Checked, ev.Total
		if ev.Problem != "" {
			last.Bad += max(1, uint64(len(ev.At)))
		}
		ev.Bad, ev.Done, ev.Error = last.Bad, false, ""
		run.write(ev, ev.Problem != "")
	})
	if last.Error = run.problem(err); last.Error == "" {
		last.Done = true
	}
	run.write(last, true)
	return nil
}

// join is the one thing that a node without a certificate may ask for.
func (s *Server) join(w http.ResponseWriter, r *http.Request) error {
	c, err := s.cluster()
	if err != nil {
		return err
	}
	if err := s.joins.allow(r); err != nil {
		return err
	}
	var req api.JoinRequest
	if err := s.readNewerJSON(w, r, &req, `{"token":"…","name":"b","csr":"…","addresses":{…}}`); err != nil {
		return err
	}
	if req.Token == "" || req.Name == "" || len(req.CSR) == 0 {
		return badRequest("the request lacks a token, a name or a certificate request").hint("use 'chainmail join-node'")
	}
	answer, err := c.Join(r.Context(), req)
	if err != nil {
		s.opts.Logger.Warn("a node was not let in", "name", req.Name, "client", r.RemoteAddr, "err", err)
		return err
	}
	writeJSON(w, http.StatusOK, answer)
	return nil
}

const (
	defaultJoinValid = time.Hour
	maxJoinValid     = 30 * 24 * time.Hour
)

func (s *Server) makeJoinToken(w http.ResponseWriter, r *http.Request) error {
	c, err := s.cluster()
	if err != nil {
		return err
	}
	var req api.JoinTokenRequest
	if err := s.readJSON(w, r, &req, `{"valid_seconds":3600}`); err != nil {
		return err
	}
	if req.ValidSeconds < 0 || req.ValidSeconds > int64(maxJoinValid/time.Second) {
		return badRequest("valid_seconds is %d: give a number from 1 to %d, or 0 for one hour", req.ValidSeconds, int64(maxJoinValid/time.Second))
	}
	valid := defaultJoinValid
	if req.ValidSeconds > 0 {
		valid = time.Duration(req.ValidSeconds) * time.Second
	}
	made, err := c.JoinToken(r.Context(), valid)
	if err != nil {
		return err
	}
	s.opts.Logger.Info("join token made", "expires", made.ExpiresAt.Format(time.RFC3339))
	writeJSON(w, http.StatusCreated, made)
	return nil
}

func (s *Server) setPolicies(w http.ResponseWriter, r *http.Request) error {
	var change api.PolicyChange
	if err := s.readJSON(w, r, &change, `{"copies":2,"replicas":3}`); err != nil {
		return err
	}
	if err := checkPolicies(change); err != nil {
		return err
	}
	return s.change(w, r, func(c Cluster) (api.Changed, error) { return c.SetPolicies(r.Context(), change) })
}

// checkPolicies refuses what no cluster could mean.
func checkPolicies(c api.PolicyChange) error {
	switch {
	case c == api.PolicyChange{}:
		return badRequest("no policy is given").hint("they are copies, replicas, when_short, ack_timeout_seconds, backfill_rate_bytes and balancers")
	case c.Copies != nil && *c.Copies < 1:
		return badRequest("copies is %d: give a number from 1", *c.Copies)
	case c.Replicas != nil && *c.Replicas < 0:
		return badRequest("replicas is %d: give a number from 1, or 0 for all", *c.Replicas)
	case c.WhenShort != nil && *c.WhenShort != "accept" && *c.WhenShort != "tempfail":
		return badRequest("when_short is %q: give accept or tempfail", *c.WhenShort)
	case c.AckTimeout != nil && !(*c.AckTimeout > 0 && *c.AckTimeout <= maxAckTimeout):
		return badRequest("ack_timeout_seconds is %v: give a number above 0 and up to %d", *c.AckTimeout, maxAckTimeout)
	case c.BackfillRate != nil && *c.BackfillRate < 0:
		return badRequest("backfill_rate_bytes is %d: give bytes a second, or 0 for no bound", *c.BackfillRate)
	case c.Balancers != nil:
		if _, err := ring.ParseBalancers(*c.Balancers); err != nil {
			return badRequest("%v", err)
		}
	}
	return nil
}

// maxAckTimeout is in seconds: RFC 5321 4.5.3.2.6 lets a client give up ten
// minutes after the end of its mail, and many do much earlier.
const maxAckTimeout = 300

func (s *Server) drainMember(w http.ResponseWriter, r *http.Request) error {
	return s.change(w, r, func(c Cluster) (api.Changed, error) { return c.Drain(r.Context(), r.PathValue("name")) })
}

func (s *Server) cancelDrain(w http.ResponseWriter, r *http.Request) error {
	return s.change(w, r, func(c Cluster) (api.Changed, error) { return c.CancelDrain(r.Context(), r.PathValue("name")) })
}

func (s *Server) removeMember(w http.ResponseWriter, r *http.Request) error {
	name, force := r.PathValue("name"), r.URL.Query().Get("force")
	if force != "" && force != name {
		return badRequest("force names %q, and the member is %q: repeat the member's name to force its removal", force, name)
	}
	return s.change(w, r, func(c Cluster) (api.Changed, error) { return c.Remove(r.Context(), name, force) })
}

func (s *Server) moveMember(w http.ResponseWriter, r *http.Request) error {
	var req api.MoveRequest
	if err := s.readJSON(w, r, &req, `{"after":"a"}`); err != nil {
		return err
	}
	name := r.PathValue("name")
	switch req.After {
	case "":
		return badRequest("no member is named to follow").hint(`send JSON such as {"after":"a"}`)
	case name:
		return badRequest("%s cannot follow itself", name).hint("name another member")
	}
	return s.change(w, r, func(c Cluster) (api.Changed, error) { return c.Move(r.Context(), name, req.After) })
}

func (s *Server) rotateKeys(w http.ResponseWriter, r *http.Request) error {
	return s.change(w, r, func(c Cluster) (api.Changed, error) { return c.RotateKeys(r.Context()) })
}

// change carries a change out, answers with what it did, and logs it: those
// who look for the reason of an alarm want to know.
func (s *Server) change(w http.ResponseWriter, r *http.Request, do func(Cluster) (api.Changed, error)) error {
	c, err := s.cluster()
	if err != nil {
		return err
	}
	done, err := do(c)
	if err != nil {
		return err
	}
	s.opts.Logger.Info("the cluster was changed", "request", r.Method+" "+r.URL.Path, "epoch", done.Epoch, "result", done.Message)
	writeJSON(w, http.StatusOK, done)
	return nil
}
