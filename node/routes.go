package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"chainmail/archive"
	"chainmail/archive/record"
	"chainmail/chain/route"
	"chainmail/node/api"
)

// routesDir is where a data directory keeps how far its routes are.
func routesDir(dataDir string) string { return filepath.Join(dataDir, "routes") }

// makeRoutes builds the routes of the configuration.
func (n *Node) makeRoutes() error {
	network := n.options.Network.complete()
	for _, c := range n.config.Routes {
		o := route.Options{
			Name: c.Name, Target: c.Target, TLS: route.TLSMode(c.TLS.Mode), CAFile: c.TLS.CA, User: c.User,
			Own: c.Send == SendOwn, From: route.From(c.From), MaxRetries: c.MaxRetries, Concurrency: c.Concurrency,
			Sender: c.Sender, Recipient: c.Recipient,
			Dir: routesDir(n.config.DataDir), Source: mailSource{n.archive},
			Dial: network.Dial, Logger: n.log, Registerer: n.registry,
		}
		if c.PasswordFile != "" {
			b, err := os.ReadFile(c.PasswordFile)
			if err != nil {
				return fmt.Errorf("route %s: %w", c.Name, err)
			}
			o.Password = strings.TrimRight(string(b), "\r\n")
		}
		r, err := route.New(o)
		if err != nil {
			return err
		}
		n.routes = append(n.routes, r)
	}
	return nil
}

// mailSource gives a route the receipts as well as the bodies.
type mailSource struct{ *archive.Archive }

func (s mailSource) Receipt(p record.Position) (record.Receipt, error) {
	e, err := s.Export(p)
	return e.Receipt, err
}

// routes gives HTTP the routes of a node.
type routes []*route.Route

// Routes tells the state of each.
func (rs routes) Routes() []api.Route {
	all := []api.Route{}
	for _, r := range rs {
		s := r.Status()
		all = append(all, api.Route{
			Name: s.Name, Target: s.Target, State: string(s.State), Problem: s.Problem,
			Next: known(s.Next), Sent: s.Sent, Backlog: s.Backlog, Oldest: known(s.Oldest),
			Deferred: uint64(s.Deferred), Unreadable: uint64(s.Unreadable), Parked: uint64(s.Parked),
		})
	}
	return all
}

func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func (rs routes) named(name string) (*route.Route, error) {
	i := slices.IndexFunc(rs, func(r *route.Route) bool { return r.Status().Name == name })
	if i < 0 {
		return nil, fmt.Errorf("there is no route %q: %w", name, archive.ErrNotFound)
	}
	return rs[i], nil
}

// Parked lists what a route's target refused for good.
func (rs routes) Parked(_ context.Context, name string) ([]api.Parked, error) {
	r, err := rs.named(name)
	if err != nil {
		return nil, err
	}
	all := []api.Parked{}
	for _, p := range r.Parked(record.Position{}, 0) {
		all = append(all, api.Parked{Position: p.Position.String(), SHA256: p.Hash.String(), Recipients: p.Recipients, Reply: p.Reply, At: p.At.UTC(), Attempts: p.Attempts})
	}
	return all, nil
}

// Retry sends parked receipts again.
func (rs routes) Retry(_ context.Context, name string, positions []record.Position) (int, error) {
	r, err := rs.named(name)
	if err != nil {
		return 0, err
	}
	return r.Retry(positions...)
}
