package ring

import "slices"

// Votes is what is known about the members when their votes are reviewed.
type Votes struct {
	Voters []string               // members that vote now
	Stable func(name string) bool // has been alive for a while
	Alive  func(name string) bool
}

// VoterChange is one step: at most one of the two is set.
type VoterChange struct {
	Promote, Demote string
}

// wanted is how many voters a cluster of n members should have: an odd number
// up to 5, because an even one tolerates no more deaths than the odd one below
// it. Two members both vote, so that each keeps the cluster's state.
func wanted(n int) int {
	switch {
	case n <= 2:
		return n
	case n <= 4:
		return 3
	}
	return 5
}

// NextVoterChange is the next step towards the wanted voters, or none. A dead
// voter gives its vote up only to a stable member that has none: taking a vote
// away without giving it to another never helps a quorum.
func (v View) NextVoterChange(now Votes) VoterChange {
	var candidate, dead string
	for _, m := range v.Members {
		votes := slices.Contains(now.Voters, m.Name)
		switch {
		case votes && !now.Alive(m.Name):
			dead = m.Name
		case !votes && candidate == "" && now.Stable(m.Name):
			candidate = m.Name
		}
	}
	want := wanted(len(v.Members))
	switch {
	case candidate != "" && len(now.Voters) < want:
		return VoterChange{Promote: candidate}
	case len(now.Voters) > want && dead != "":
		return VoterChange{Demote: dead}
	case candidate != "" && dead != "": // one too many for a moment, then the dead one goes
		return VoterChange{Promote: candidate}
	}
	if len(now.Voters) > want {
		return VoterChange{Demote: now.Voters[len(now.Voters)-1]}
	}
	return VoterChange{}
}
