package node

import (
	"strings"
	"testing"

	"chainmail/archive/record"
	"chainmail/membership/ring"
	"chainmail/node/api"
)

func well(name string) api.Member {
	return api.Member{
		Name: name, Role: "data", State: api.StateActive, Backlog: &api.Backlog{},
		Self: &api.SelfReport{State: api.StateActive},
	}
}

func TestVerdict(t *testing.T) {
	for name, test := range map[string]struct {
		change  func(c *api.Cluster)
		verdict string
		reason  string
	}{
		"all well":        {func(*api.Cluster) {}, api.Green, ""},
		"a node is away":  {func(c *api.Cluster) { c.Members[1].State, c.Members[1].Self = api.StateUnreachable, nil }, api.Yellow, "b: unreachable"},
		"no quorum":       {func(c *api.Cluster) { c.Quorum = false }, api.Yellow, "mail flows all the same"},
		"backlog unknown": {func(c *api.Cluster) { c.Members[0].Backlog = nil }, api.Yellow, "a: what it lacks is not known yet"},
		"witness": {func(c *api.Cluster) {
			c.Members = append(c.Members, api.Member{Name: "w", Role: "witness", State: api.StateActive})
		}, api.Green, ""},
		"catching up": {func(c *api.Cluster) { c.Members[0].Backlog.Receipts = 7 }, api.Yellow, "a: lacks 7 receipts that others are sending it"},
		"short":       {func(c *api.Cluster) { c.Members[0].Self.ShortNow = 3 }, api.Red, "a: 3 receipts of its mail with fewer copies"},
		"lost": {func(c *api.Cluster) {
			c.Members[1].Backlog = &api.Backlog{Receipts: 2, Lost: 2, LostAt: []string{"0000000000000001:3-4"}}
		}, api.Red, "0000000000000001:3-4"},
		"damaged":                           {func(c *api.Cluster) { c.Members[1].Self.Bad = 1 }, api.Red, "b: 1 receipt damaged"},
		"b: positions with two contents: 1": {func(c *api.Cluster) { c.Members[1].Self.Quarantined = 1 }, api.Red, "two contents"},
		"full":                              {func(c *api.Cluster) { c.Members[0].Self.State = api.StateFull }, api.Red, "a: refuses mail"},
		"nobody takes mail":                 {func(c *api.Cluster) { c.Members = c.Members[:1]; c.Members[0].State = api.StateDraining }, api.Red, "no member takes mail"},
		"red comes first":                   {func(c *api.Cluster) { c.Quorum = false; c.Members[0].Self.ShortNow = 3 }, api.Red, "a: 3 receipts"},
		"too few for the copies": {func(c *api.Cluster) {
			c.Policies.Copies = 2
			c.Members[1].State, c.Members[1].Self = api.StateUnreachable, nil
		}, api.Red, "new mail has fewer copies than the 2 that the policy asks for: only 1 node is up"},
		"and tempfail": {func(c *api.Cluster) {
			c.Policies = api.Policies{Copies: 2, WhenShort: "tempfail"}
			c.Members[1].State, c.Members[1].Self = api.StateUnreachable, nil
		}, api.Red, "every mail is answered 451"},
		"a lone node": {func(c *api.Cluster) { c.Policies.Copies = 2; c.Members = c.Members[:1] }, api.Green, ""},
		"out of reach": {func(c *api.Cluster) {
			n := uint64(5)
			c.Members[1].State, c.Members[1].Self, c.Members[1].OutOfReach = api.StateUnreachable, nil, &n
		}, api.Red, "b: 5 receipts that only it holds"},
		"no link": {func(c *api.Cluster) {
			c.Members[1].Link = &api.Link{State: "connecting", Problem: "connection refused"}
		}, api.Yellow, "b: no chain link to it: connection refused"},
		"a route has parked": {func(c *api.Cluster) { c.Routes = []api.Route{{Name: "piler", Parked: 1}} }, api.Yellow, "route piler: mails refused for good by"},
	} {
		t.Run(name, func(t *testing.T) {
			c := api.Cluster{Quorum: true, Members: []api.Member{well("a"), well("b")}}
			test.change(&c)
			judge(&c)
			if c.Verdict != test.verdict || !strings.Contains(strings.Join(append(c.Reasons, "")[:1], ""), test.reason) {
				t.Errorf("%s because of %q, want %s because of %q", c.Verdict, c.Reasons, test.verdict, test.reason)
			}
		})
	}
}

func TestNotHanded(t *testing.T) {
	view := ring.View{Policies: ring.Policies{Replicas: 2}, Members: []ring.Member{
		{Name: "a", Role: ring.Data, State: ring.Draining}, {Name: "b", Role: ring.Data}, {Name: "c", Role: ring.Data},
	}}
	log := func(held string) []record.Log {
		r, err := record.ParseRanges(held)
		if err != nil {
			t.Fatal(err)
		}
		return []record.Log{{Store: 1, Origin: "a", Held: r}}
	}
	for _, test := range []struct {
		mine, b, c string
		left       uint64
	}{
		{"1-10", "1-10", "1-10", 0},
		{"1-10", "1-10", "1-7", 3},
		{"1-10", "1-10", "", 10},
		{"1-10", "2-10", "3-9", 3},
		{"5", "1-4,6-10", "", 1},
	} {
		peers := map[string][]record.Log{"b": log(test.b), "c": log(test.c)}
		if left := notHanded(view, "a", log(test.mine), peers); left != test.left {
			t.Errorf("%+v: %d not handed over", test, left)
		}
	}
	if left := notHanded(ring.View{Policies: ring.DefaultPolicies(), Members: view.Members[:1]}, "a", log("1-3"), nil); left != 3 {
		t.Errorf("the only member may leave with all but %d", left)
	}
}
