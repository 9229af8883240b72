package ring

import (
	"fmt"
	"slices"
	"strings"
)

// AtRisk counts receipts of one log that depend on one node.
type AtRisk struct {
	Log string // the store whose log it is, as it prints
	// Only counts receipts of which the node is the only reachable holder.
	Only uint64
	// Few counts receipts that others hold too, but fewer of them than the
	// policy's copies.
	Few uint64
	// Unknown: what the others hold of the log is not known, so the counts say
	// nothing.
	Unknown bool
}

// StopQuestion is what is known when somebody asks whether a node may stop for
// a while, such as for an upgrade.
type StopQuestion struct {
	View   View
	Name   string
	Alive  func(name string) bool
	Voters []string
	Logs   []AtRisk
	// Takes says whether a node takes new mail now.
	Takes func(name string) bool
}

// SafeToStop says why a node should not be stopped now; nothing when it may.
//
// A lost quorum is a reason only where there are three voters or more: of two
// voters, either one takes the quorum with it whenever it stops, mail flows all
// the same, and waiting would not help.
func SafeToStop(q StopQuestion) (reasons []string) {
	say := func(format string, args ...any) { reasons = append(reasons, fmt.Sprintf(format, args...)) }
	m, ok := q.View.Member(q.Name)
	if !ok {
		return []string{q.Name + " is not a member of this cluster: see 'chainmail status'"}
	}
	if m.Role == Data {
		others := slices.ContainsFunc(q.View.Members, func(o Member) bool {
			return o.Name != q.Name && o.Role == Data && q.Alive(o.Name) && q.Takes(o.Name)
		})
		if !others {
			say("no other node takes mail: start another one first")
		}
		reasons = append(reasons, q.mailReasons()...)
	}
	if left, need := votesWithout(q); len(q.Voters) > 2 && slices.Contains(q.Voters, q.Name) && left < need {
		say("without %s only %d of %d voters are there, and %d are needed to change anything: start the missing ones first", q.Name, left, len(q.Voters), need)
	}
	return reasons
}

// mailReasons names the mail that would be out of reach, or short of copies.
func (q StopQuestion) mailReasons() (reasons []string) {
	for _, l := range q.Logs {
		switch {
		case l.Unknown:
			reasons = append(reasons, fmt.Sprintf("what the others hold of log %s is not known yet: ask again when all members are connected", l.Log))
		case l.Only > 0:
			reasons = append(reasons, fmt.Sprintf("no other reachable node holds %s of log %s: wait until that mail is copied", receipts(l.Only), l.Log))
		case l.Few > 0:
			reasons = append(reasons, fmt.Sprintf("%s of log %s would be left with fewer copies than the policy's %d: wait until that mail is copied", receipts(l.Few), l.Log, q.View.Policies.Copies))
		}
	}
	return reasons
}

// votesWithout counts the live voters other than the node, and how many it
// takes to commit.
func votesWithout(q StopQuestion) (left, need int) {
	for _, v := range q.Voters {
		if v != q.Name && q.Alive(v) {
			left++
		}
	}
	return left, len(q.Voters)/2 + 1
}

func receipts(n uint64) string {
	if n == 1 {
		return "1 receipt"
	}
	return fmt.Sprintf("%d receipts", n)
}

// RemoveQuestion is what is known when somebody wants to remove a member that
// will not come back.
type RemoveQuestion struct {
	View  View
	Name  string
	Alive bool
	// Drained: the member is draining and holds nothing that others lack, so
	// it leaves in order, alive as it is.
	Drained bool
	// Known: what the member held when it was last heard of is known. Without
	// it Logs says nothing.
	Known bool
	Logs  []AtRisk // of the logs that the member held
	Force bool
}

// RemoveRefusal says why a member must not be removed; nothing when it may.
// Force overrides the fear for mail, and nothing else.
func RemoveRefusal(q RemoveQuestion) (reasons []string) {
	m, ok := q.View.Member(q.Name)
	if !ok {
		return []string{q.Name + " is not a member of this cluster: see 'chainmail status'"}
	}
	if m.Role == Witness {
		return nil
	}
	if len(q.View.Ring()) == 1 {
		return []string{q.Name + " is the only data member: a cluster without one keeps no mail; let another node join first"}
	}
	if q.Alive && !q.Drained {
		return []string{fmt.Sprintf("%s is alive: 'chainmail drain-node %s' moves its copies to the others and then removes it; 'remove-node' is for the dead", q.Name, q.Name)}
	}
	if q.Force {
		return nil
	}
	force := fmt.Sprintf("start %s again if its disk still exists; 'chainmail remove-node %s --force %s' gives that mail up", q.Name, q.Name, q.Name)
	if !q.Known {
		return []string{"what " + q.Name + " holds is not known, so mail may be lost with it: " + force}
	}
	var lost, unknown []string
	for _, l := range q.Logs {
		switch {
		case l.Unknown:
			unknown = append(unknown, l.Log)
		case l.Only > 0:
			lost = append(lost, fmt.Sprintf("%s of log %s", receipts(l.Only), l.Log))
		}
	}
	if len(lost) > 0 {
		reasons = append(reasons, fmt.Sprintf("only %s holds %s: %s", q.Name, strings.Join(lost, ", "), force))
	}
	if len(unknown) > 0 {
		reasons = append(reasons, fmt.Sprintf("what the others hold of log %s is not known: %s", strings.Join(unknown, ", "), force))
	}
	return reasons
}
