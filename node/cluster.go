package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"chainmail/membership"
	"chainmail/membership/ring"
	"chainmail/node/api"
)

// ClusterDir is where a data directory keeps what its node knows of the
// cluster: certificate, keys, committed view and Raft's log.
func ClusterDir(dataDir string) string { return filepath.Join(dataDir, "cluster") }

// JoinOptions say who joins which cluster.
type JoinOptions struct {
	Config  Config // the effective configuration of the new node
	Peer    string // HTTP address of any member
	Token   string
	Replace bool // take the name of a member whose disk is lost
	Version string
	Network *Network
}

// Join makes a data directory that of a member: it asks a member for a
// certificate, the keys and the view. The node itself does not run yet. A join
// that was interrupted may be repeated with the same token.
func Join(ctx context.Context, o JoinOptions) (api.Changed, error) {
	if err := o.Config.Validate(); err != nil {
		return api.Changed{}, err
	}
	told, err := o.Config.advertised(nil)
	if err != nil {
		return api.Changed{}, err
	}
	dir := ClusterDir(o.Config.DataDir)
	err = membership.Join(ctx, membership.JoinOptions{
		Dir:       dir,
		Name:      o.Config.Name,
		Role:      ring.Role(o.Config.Role),
		Replace:   o.Replace,
		Peer:      o.Peer,
		Token:     o.Token,
		Advertise: told,
		Version:   o.Version,
		Dial:      o.Network.complete().Dial,
	})
	if err != nil {
		return api.Changed{}, err
	}
	view, err := membership.ReadView(dir)
	if err != nil {
		return api.Changed{}, err
	}
	return api.Changed{
		Epoch:   uint64(view.Epoch),
		Message: fmt.Sprintf("%s is a member of cluster %s at epoch %d; start it to receive its mail", o.Config.Name, view.Cluster, view.Epoch),
	}, nil
}

// Recover makes the stopped node of a data directory the only member of its
// cluster: the last resort when a majority of the voters is lost for good. It
// returns what it did, for people.
func Recover(dataDir string) (string, error) { return membership.Recover(ClusterDir(dataDir)) }

// openMembership opens the node's place in its cluster. A data directory
// without one becomes a cluster of one node, unless the configuration says that
// it belongs to a certain one: then its disk was lost.
func (n *Node) openMembership() error {
	c, dir := n.config, ClusterDir(n.config.DataDir)
	network := n.options.Network.complete()
	told, err := c.advertised(nil)
	if err != nil {
		return err
	}
	if !membership.Exists(dir) {
		switch {
		case c.Cluster != "":
			return fmt.Errorf("this node belongs to cluster %s, but %s holds nothing of it: mount the right disk; or, if its disk is lost, join in its place: chainmail join-node --replace --name %s --peer HOST:HTTPPORT --token TOKEN", c.Cluster, c.DataDir, c.Name)
		case c.Role == RoleWitness:
			return errors.New("a witness alone watches over nothing: let it join a cluster with chainmail witness --name NAME --peer HOST:HTTPPORT --token TOKEN")
		}
		if err := membership.Create(dir, membership.CreateOptions{Name: c.Name, Role: ring.Data, Advertise: told, Version: n.options.Version}); err != nil {
			return err
		}
	}
	n.members, err = membership.Open(membership.Options{
		Dir:        dir,
		Bind:       membership.Bind{Gossip: c.Gossip, Raft: c.Raft},
		Version:    n.options.Version,
		Network:    membership.Network{Listen: network.Listen, ListenPacket: network.ListenPacket, Dial: network.Dial},
		Logger:     n.log,
		Registerer: n.registry,
	})
	if err != nil {
		return err
	}
	switch m := n.members; {
	case m.Name() != c.Name:
		err = fmt.Errorf("%s belongs to the node %s: start it under that name, or give %s a data directory of its own", c.DataDir, m.Name(), c.Name)
	case c.Cluster != "" && m.Cluster() != c.Cluster:
		err = fmt.Errorf("%s belongs to cluster %s, and the configuration names cluster %s: name the right data directory, or take the key cluster out", c.DataDir, m.Cluster(), c.Cluster)
	}
	if err == nil && n.isStranger() {
		err = n.strangerError()
	}
	if err != nil {
		return errors.Join(err, n.members.Close())
	}
	return nil
}
