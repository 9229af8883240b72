package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"chainmail/node/api"
)

// verdictWords stand for a verdict without reasons.
var verdictWords = map[string]string{
	api.Green:  "every mail has its copies, and every member is well",
	api.Yellow: "no mail is in danger, but something needs time or care",
	api.Red:    "mail has fewer copies than the policy asks for, is refused or damaged",
}

// unknown is printed for what nobody knows, which is not 0.
const unknown = "unknown"

// printClusterState prints the verdict, the members, and what the table has no
// room for.
func printClusterState(w io.Writer, c api.Cluster) error {
	printVerdict(w, c)
	var head table
	head.add("Cluster", fmt.Sprintf("%s, epoch %s", c.ID, humanCount(c.Epoch)))
	head.add("Voters", votersLine(c))
	head.add("Policies", policiesLine(c.Policies))
	if err := head.printAsList(w); err != nil {
		return err
	}
	fmt.Fprintln(w)
	members := memberTable(c)
	if err := members.print(w); err != nil {
		return err
	}
	for _, note := range memberNotes(c) {
		fmt.Fprintln(w, sanitize("  "+note))
	}
	if len(c.Routes) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	routes := routeTable(c.Routes)
	return routes.print(w)
}

// policiesLine names the balancers only where there are any.
func policiesLine(p api.Policies) string {
	line := fmt.Sprintf("copies %d, replicas %s, when_short %s, ack_timeout %s, backfill_rate %s",
		p.Copies, replicasText(p.Replicas), p.WhenShort, secondsText(p.AckTimeout), rateText(p.BackfillRate))
	if len(p.Balancers) > 0 {
		line += ", balancers " + strings.Join(p.Balancers, " ")
	}
	return line
}

func printVerdict(w io.Writer, c api.Cluster) {
	reasons := c.Reasons
	if len(reasons) == 0 {
		reasons = []string{withoutReasons(c)}
	}
	for i, reason := range reasons {
		word := ""
		if i == 0 {
			word = strings.ToUpper(c.Verdict)
		}
		fmt.Fprintf(w, "%-6s  %s\n", sanitize(word), sanitize(reason))
	}
	fmt.Fprintln(w)
}

// withoutReasons is what a verdict says by itself. Of a cluster with one data
// member it must not sound as if there were copies.
func withoutReasons(c api.Cluster) string {
	data := slices.DeleteFunc(slices.Clone(c.Members), func(m api.Member) bool { return m.Role == roleWitness })
	if c.Verdict != api.Green || len(data) != 1 {
		return verdictWords[c.Verdict]
	}
	whose := "this node's"
	if data[0].Name != c.Node {
		whose = data[0].Name + "'s"
	}
	return "every mail is on " + whose + " disk and on no other: add a second node (chainmail token join)"
}

// memberTable has the members in the order of the ring, this node with a star.
func memberTable(c api.Cluster) table {
	var t table
	t.add("RING", "MEMBER", "STATE", "ROLE", "NEXT", "LACKS", "BYTES", "OLDEST", "SHORT", "VERSION")
	place := 0
	for _, m := range c.Members {
		row := []string{"-", m.Name, m.State, memberRole(c, m), orDash(m.Successor), "-", "-", "-", "-", orDash(m.Version)}
		if m.Name == c.Node {
			row[1] += " *"
		}
		if m.Role != roleWitness {
			place++
			row[0] = strconv.Itoa(place)
			row[5], row[6], row[7] = lacks(m.Backlog, c.At)
			row[8] = unknown
			if m.Self != nil {
				row[8] = humanCount(m.Self.ShortNow)
			}
		}
		t.add(row...)
	}
	return t
}

func memberRole(c api.Cluster, m api.Member) string {
	var words []string
	if m.Role == roleWitness {
		words = append(words, "witness")
	}
	switch {
	case m.Name == c.Leader:
		words = append(words, "leader")
	case m.Voter:
		words = append(words, "voter")
	case len(words) == 0:
		words = append(words, "no vote")
	}
	return strings.Join(words, ", ")
}

// lacks are the three cells of a backlog.
func lacks(b *api.Backlog, at time.Time) (receipts, bytes, oldest string) {
	switch {
	case b == nil:
		return unknown, unknown, unknown
	case b.Receipts == 0:
		return "0", "-", "-"
	}
	oldest = unknown
	if b.Oldest != nil {
		oldest = span(max(0, at.Sub(*b.Oldest)))
	}
	return humanCount(b.Receipts), sizeOrUnknown(b.Bytes), oldest
}

func sizeOrUnknown(n *int64) string {
	if n == nil {
		return unknown
	}
	return humanSize(*n)
}

// memberNotes are a line for each thing about a member that the reasons of the
// verdict do not tell already.
func memberNotes(c api.Cluster) []string {
	var notes []string
	for _, m := range c.Members {
		about := m.Name + ": "
		told := func(what string) bool {
			tells := func(line string) bool { return strings.HasPrefix(line, about) && strings.Contains(line, what) }
			return slices.ContainsFunc(c.Reasons, tells) || slices.ContainsFunc(notes, tells)
		}
		say := func(what string) {
			if what != "" && !told(what) {
				notes = append(notes, about+what)
			}
		}
		for _, warning := range m.Warnings {
			say(warning)
		}
		if m.State != api.StateActive {
			say(m.Reason)
		}
		if m.Link != nil && m.Link.Problem != "" && !told(m.Link.Problem) {
			say("link " + m.Link.State + ": " + m.Link.Problem)
		}
		if m.State == api.StateUnreachable && !m.Seen.IsZero() {
			say("last seen " + shortTime(m.Seen))
		}
	}
	return notes
}
