package membership

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"chainmail/membership/ring"
)

// CreateOptions describe the first node of a cluster.
type CreateOptions struct {
	Name      string
	Role      ring.Role // empty: ring.Data; the first node of a cluster is no witness
	Advertise ring.Addresses
	Version   string
	Logger    *slog.Logger // nil: silent
}

// Create makes dir a cluster of one node: a cluster ID, a CA, the node's
// certificate, a gossip key and the first view, in which the node is active.
// It can be called again when it was killed in the middle. A directory that
// belongs to a cluster is an ErrExists.
func Create(dir string, o CreateOptions) error {
	if err := settleCluster(dir); err != nil {
		return err
	}
	if complete(dir) {
		if unused(dir, o.Name) {
			return nil // an earlier call was killed just before it could say so
		}
		return fail(ErrExists, "%s belongs to a cluster already: start its node with 'chainmail node'", dir)
	}
	if err := ring.CheckName(o.Name); err != nil {
		return err
	}
	if o.Role != "" && o.Role != ring.Data {
		return errors.New("a witness keeps no mail and cannot begin a cluster: start the first node with 'chainmail node', then let the witness join")
	}
	s, pem, err := newCluster(o)
	if err != nil {
		return err
	}
	log := raftLog{libraryLog: newLibraryLog(orSilent(o.Logger), "raft")}
	err = makeCluster(dir, s, pem, func(raft string) error {
		return seedRaft(raft, s.View.Members[0].ID, &fsm{state: s}, log)
	})
	if err != nil {
		return fmt.Errorf("creating the cluster: %w: the data directory must be writable for the node's user, with some space left", err)
	}
	return nil
}

// unused reports whether dir is a cluster as Create makes it, which nobody ever
// ran.
func unused(dir, name string) bool {
	s, err := readState(dir)
	return err == nil && s.View.Epoch == 1 && len(s.View.Members) == 1 && s.View.Members[0].Name == name && !exists(filepath.Join(dir, lockFile))
}

func orSilent(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}

// newCluster is the first state, and the content of node.pem.
func newCluster(o CreateOptions) (state, []byte, error) {
	s := state{
		View: ring.View{
			Cluster:  newID(),
			Epoch:    1,
			Policies: ring.DefaultPolicies(),
			Members: []ring.Member{{
				Name: o.Name, ID: newID(), Role: ring.Data, State: ring.Active,
				Addresses: o.Advertise, Version: o.Version, JoinedAt: time.Now().UTC(),
			}},
		},
		Gossip: gossipKeys{Keys: [][]byte{newGossipKey()}, Phase: steady, Since: 1},
	}
	var err error
	if s.CA, err = newAuthority(s.View.Cluster); err != nil {
		return state{}, nil, err
	}
	key, err := newKey()
	if err != nil {
		return state{}, nil, err
	}
	m := &s.View.Members[0]
	csr, err := newCSR(key, m.Name)
	if err != nil {
		return state{}, nil, err
	}
	leaf, err := s.CA.sign(csr, m.Name, m.ID, s.View.Epoch)
	if err != nil {
		return state{}, nil, err
	}
	m.Certificates = []string{hexHash(leaf)}
	pem, err := encodeIdentity(leaf, s.CA.Certificate, key)
	return s, pem, err
}
