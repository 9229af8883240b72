package node

import (
	"fmt"
	"slices"
	"strings"

	"chainmail/membership/ring"
	"chainmail/node/api"
)

// judge gives a cluster its verdict and the reasons, the gravest first. Red
// says that mail has fewer copies than the policy, is refused or damaged;
// yellow that nothing is in danger but something needs time or care.
func judge(c *api.Cluster) {
	var red, yellow []string
	for _, m := range c.Members {
		r, y := judgeMember(m)
		red, yellow = append(red, r...), append(yellow, y...)
	}
	switch up, want := len(takers(c)), copiesOf(c); {
	case up == 0:
		red = append([]string{"no member takes mail"}, red...)
	case up < want && c.Policies.WhenShort == string(ring.Tempfail):
		red = append([]string{fmt.Sprintf("every mail is answered 451: the policy asks for %d copies, and %s", want, nodesUp(up))}, red...)
	case up < want:
		red = append([]string{fmt.Sprintf("new mail has fewer copies than the %d that the policy asks for: %s", want, nodesUp(up))}, red...)
	}
	for _, r := range c.Routes {
		if r.Parked > 0 {
			yellow = append(yellow, fmt.Sprintf("route %s: mails refused for good by %s: %d; see chainmail route parked %s", r.Name, r.Target, r.Parked, r.Name))
		}
		if r.Problem != "" {
			yellow = append(yellow, fmt.Sprintf("route %s: %s", r.Name, r.Problem))
		}
	}
	if !c.Quorum {
		yellow = append(yellow, "there is no leader: no member can join, drain or be removed until a majority of the voters ("+strings.Join(c.Voters, ", ")+") is up; mail flows all the same")
	}
	c.Reasons = append(red, yellow...)
	switch {
	case len(red) > 0:
		c.Verdict = api.Red
	case len(yellow) > 0:
		c.Verdict = api.Yellow
	default:
		c.Verdict, c.Reasons = api.Green, []string{}
	}
}

// copiesOf is how many copies a mail should have: the policy's, or one on each
// node where they are fewer.
func copiesOf(c *api.Cluster) int {
	keepers := 0
	for _, m := range c.Members {
		if m.Role == string(ring.Data) && m.State != api.StateDraining {
			keepers++
		}
	}
	return min(c.Policies.Copies, keepers)
}

func nodesUp(n int) string {
	if n == 1 {
		return "only 1 node is up"
	}
	return fmt.Sprintf("only %d nodes are up", n)
}

func judgeMember(m api.Member) (red, yellow []string) {
	say := func(list *[]string, format string, a ...any) {
		*list = append(*list, m.Name+": "+fmt.Sprintf(format, a...))
	}
	if b := m.Backlog; b != nil && b.Lost > 0 {
		say(&red, "lacks %s that no reachable member holds: %s", receipts(b.Lost), strings.Join(b.LostAt, ", "))
	}
	if s := m.Self; s != nil {
		switch {
		case s.ShortNow > 0:
			say(&red, "%s of its mail with fewer copies than the policy asks for", receipts(s.ShortNow))
		case s.State == api.StateFull:
			say(&red, "refuses mail: %s", s.Reason)
		}
		if s.Bad > 0 {
			say(&red, "%s damaged: see chainmail status on it", receipts(s.Bad))
		}
		if s.Quarantined > 0 {
			say(&red, "positions with two contents: %d; somebody's disk was set back, see docs/operations.md", s.Quarantined)
		}
	}
	if m.OutOfReach != nil && *m.OutOfReach > 0 {
		say(&red, "%s that only it holds cannot be read until it is back", receipts(*m.OutOfReach))
	}
	if l := m.Link; l != nil && l.Problem != "" && m.State != api.StateUnreachable {
		say(&yellow, "no chain link to it: %s", l.Problem)
	}
	switch m.State {
	case api.StateUnreachable:
		say(&yellow, "unreachable%s", because(m.Reason))
	case api.StateJoining:
		say(&yellow, "joining: it is given the history")
	case api.StateDraining:
		say(&yellow, "draining: its copies move to others")
	case api.StateStarting:
		say(&yellow, "starting")
	}
	switch b := m.Backlog; {
	case b == nil && m.Role == string(ring.Data):
		say(&yellow, "what it lacks is not known yet")
	case b != nil && b.Receipts > b.Lost && m.State == api.StateUnreachable:
		say(&yellow, "lacks %s, which it is given when it is back", receipts(b.Receipts-b.Lost))
	case b != nil && b.Receipts > b.Lost && m.State != api.StateJoining:
		say(&yellow, "lacks %s that others are sending it", receipts(b.Receipts-b.Lost))
	}
	for _, w := range m.Warnings {
		say(&yellow, "%s", w)
	}
	return red, yellow
}

func receipts(n uint64) string {
	if n == 1 {
		return "1 receipt"
	}
	return fmt.Sprintf("%d receipts", n)
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return " (" + reason + ")"
}

// takers are the members that take mail.
func takers(c *api.Cluster) []string {
	var names []string
	for _, m := range c.Members {
		if m.Role == string(ring.Data) && slices.Contains([]string{api.StateActive, api.StateJoining}, m.State) && (m.Self == nil || m.Self.State == api.StateActive || m.Self.State == api.StateJoining) {
			names = append(names, m.Name)
		}
	}
	return names
}
