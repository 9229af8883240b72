package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"chainmail/archive/record"
	"chainmail/node/api"
)

// Cluster asks for the cluster as the node sees it.
func (c *Client) Cluster(ctx context.Context) (s api.Cluster, err error) {
	return s, c.call(ctx, http.MethodGet, "/cluster", nil, &s)
}

// Self asks a peer what it tells of itself.
func (c *Client) Self(ctx context.Context) (s api.SelfReport, err error) {
	return s, c.call(ctx, http.MethodGet, "/cluster/self", nil, &s)
}

// Join asks a peer to let a node in, and reads the answer into out.
func (c *Client) Join(ctx context.Context, r api.JoinRequest, out any) error {
	return c.call(ctx, http.MethodPost, "/cluster/join", r, out)
}

// JoinToken makes a token that lets one node join.
func (c *Client) JoinToken(ctx context.Context, valid time.Duration) (t api.JoinToken, err error) {
	return t, c.call(ctx, http.MethodPost, "/cluster/tokens", api.JoinTokenRequest{ValidSeconds: int64(valid / time.Second)}, &t)
}

// SetPolicies changes those policies that are given.
func (c *Client) SetPolicies(ctx context.Context, p api.PolicyChange) (api.Changed, error) {
	return c.change(ctx, http.MethodPatch, "/cluster/policies", p)
}

// Drain lets a member hand over what it holds, and leave.
func (c *Client) Drain(ctx context.Context, name string) (api.Changed, error) {
	return c.change(ctx, http.MethodPost, memberPath(name)+"/drain", nil)
}

// CancelDrain lets a member that drains stay.
func (c *Client) CancelDrain(ctx context.Context, name string) (api.Changed, error) {
	return c.change(ctx, http.MethodDelete, memberPath(name)+"/drain", nil)
}

// Remove takes out a member that will not come back. force is its name again,
// when mail that only it holds may be lost, or empty.
func (c *Client) Remove(ctx context.Context, name, force string) (api.Changed, error) {
	path := memberPath(name)
	if force != "" {
		path += "?force=" + url.QueryEscape(force)
	}
	return c.change(ctx, http.MethodDelete, path, nil)
}

// Move gives a member the place behind another one in the ring.
func (c *Client) Move(ctx context.Context, name, after string) (api.Changed, error) {
	return c.change(ctx, http.MethodPost, memberPath(name)+"/move", api.MoveRequest{After: after})
}

// SafeToStop asks whether a member may be stopped for a while.
func (c *Client) SafeToStop(ctx context.Context, name string) (s api.SafeToStop, err error) {
	return s, c.call(ctx, http.MethodGet, memberPath(name)+"/safe-to-stop", nil, &s)
}

// RotateKeys gives the cluster new keys.
func (c *Client) RotateKeys(ctx context.Context) (api.Changed, error) {
	return c.change(ctx, http.MethodPost, "/cluster/keys/rotate", nil)
}

// VerifyCluster lets the node compare all replicas, and calls report for every
// line that comes, at last for the event with Done, which it also returns. That
// something differs is not an error here.
func (c *Client) VerifyCluster(ctx context.Context, report func(api.ClusterVerifyEvent)) (last api.ClusterVerifyEvent, err error) {
	resp, err := c.do(ctx, http.MethodPost, "/cluster/verify", nil, 0)
	if err != nil {
		return last, err
	}
	defer resp.Body.Close()
	early := func(why error) error {
		return fmt.Errorf("the comparison ended early, after %d of %d receipts: %w", last.Checked, last.Total, why)
	}
	for dec := json.NewDecoder(resp.Body); ; {
		var ev api.ClusterVerifyEvent
		if err := dec.Decode(&ev); err != nil {
			return last, early(c.explain(ctx, err))
		}
		if last = ev; ev.Error != "" {
			return last, early(errors.New(ev.Error))
		}
		report(ev)
		if ev.Done {
			return last, nil
		}
	}
}

// Segment asks a peer for the digest of a segment of a log.
func (c *Client) Segment(ctx context.Context, log record.StoreID, n uint64) (api.Segment, error) {
	var d api.Digests
	q := url.Values{"log": {log.String()}, "segment": {strconv.FormatUint(n, 10)}}
	if err := c.call(ctx, http.MethodGet, "/cluster/digests?"+q.Encode(), nil, &d); err != nil {
		return api.Segment{}, err
	}
	if d.Segment == nil {
		return api.Segment{}, fmt.Errorf("the answer of %s has no segment %d of log %s", c.base, n, log)
	}
	return *d.Segment, nil
}

// Digests asks a peer for the digest of each receipt that it holds in a range
// of a log, of at most 1024 receipts.
func (c *Client) Digests(ctx context.Context, log record.StoreID, r record.Range) ([]api.ReceiptDigest, error) {
	var d api.Digests
	q := url.Values{"log": {log.String()}, "first": {r.First.String()}, "last": {r.Last.String()}}
	err := c.call(ctx, http.MethodGet, "/cluster/digests?"+q.Encode(), nil, &d)
	return d.Receipts, err
}

// Routes lists the node's routes to foreign mail servers.
func (c *Client) Routes(ctx context.Context) ([]api.Route, error) {
	var l api.RouteList
	err := c.call(ctx, http.MethodGet, "/routes", nil, &l)
	return l.Routes, err
}

// Parked lists what a route's target refused for good.
func (c *Client) Parked(ctx context.Context, route string) ([]api.Parked, error) {
	var l api.ParkedList
	err := c.call(ctx, http.MethodGet, routePath(route)+"/parked", nil, &l)
	return l.Parked, err
}

// Retry sends parked receipts of a route again, all when none are named, and
// returns how many.
func (c *Client) Retry(ctx context.Context, route string, positions []string) (int, error) {
	var done api.Retried
	err := c.call(ctx, http.MethodPost, routePath(route)+"/retry", api.RetryRequest{Positions: append([]string{}, positions...)}, &done)
	return done.Retried, err
}

func (c *Client) change(ctx context.Context, method, path string, in any) (done api.Changed, err error) {
	return done, c.call(ctx, method, path, in, &done)
}

func memberPath(name string) string { return "/cluster/members/" + url.PathEscape(name) }

func routePath(name string) string { return "/routes/" + url.PathEscape(name) }
