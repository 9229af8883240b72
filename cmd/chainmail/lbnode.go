package main

import (
	"context"
	"errors"
	"sync"

	"chainmail/node/api"
	"chainmail/node/client"
)

// here stands for the address of the node on this machine, which is asked by its
// admin socket, without a token.
const here = "the node on this machine"

// neighbour is another member, as lb.Asker for those who have no token: it is
// asked for its health only, which is open.
type neighbour struct {
	local   *client.Client // the node on this machine, which knows the cluster's CA
	address string

	mu     sync.Mutex
	remote *client.Client // nil: the CA is not known yet
}

// Cluster wants a token.
func (*neighbour) Cluster(context.Context) (api.Cluster, error) {
	return api.Cluster{}, errors.New("only the node on this machine is asked: name others with --peer and --token-file")
}

// CA asks the node on this machine.
func (n *neighbour) CA(ctx context.Context) ([]byte, error) { return n.local.CA(ctx) }

// Ready asks the member whether it takes mail, by TLS, which proves that it is
// the member that answers.
func (n *neighbour) Ready(ctx context.Context) (api.Health, error) {
	c, err := n.client(ctx)
	if err != nil {
		return api.Health{}, err
	}
	return c.Ready(ctx)
}

func (n *neighbour) client(ctx context.Context) (*client.Client, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.remote == nil {
		ca, err := n.local.CA(ctx)
		if err != nil {
			return nil, err
		}
		if n.remote, err = client.NewMember(n.address, ca); err != nil {
			return nil, err
		}
	}
	return n.remote, nil
}

// Close drops the idle connections.
func (n *neighbour) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.remote != nil {
		n.remote.Close()
	}
}
