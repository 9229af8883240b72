package ring_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"chainmail/membership/ring"
)

// view makes a view of members written as "a b- w*": "-" is draining, "+"
// joining, "*" a witness.
func view(members string, replicas, copies int) ring.View {
	v := ring.View{Cluster: "x", Epoch: 1, Policies: ring.DefaultPolicies()}
	v.Policies.Replicas, v.Policies.Copies = replicas, copies
	for _, f := range strings.Fields(members) {
		m := ring.Member{Name: strings.TrimRight(f, "-+*"), Role: ring.Data, State: ring.Active}
		m.ID = "id-" + m.Name
		switch {
		case strings.HasSuffix(f, "-"):
			m.State = ring.Draining
		case strings.HasSuffix(f, "+"):
			m.State = ring.Joining
		case strings.HasSuffix(f, "*"):
			m.Role = ring.Witness
		}
		v.Members = append(v.Members, m)
	}
	return v
}

// among makes a predicate of the names that are true.
func among(names string) func(string) bool {
	return func(name string) bool { return slices.Contains(strings.Fields(names), name) }
}

func TestFrom(t *testing.T) {
	for _, tt := range []struct{ members, from, want, successor string }{
		{"", "a", "", ""},
		{"a", "a", "a", ""},
		{"a b c", "a", "a b c", "b"},
		{"a b c", "c", "c a b", "a"},
		{"a w* b v* c", "b", "b c a", "c"},
		{"w*", "w", "", ""},
		{"a b- c+", "b", "b c a", "c"},
	} {
		v := view(tt.members, 3, 2)
		if got := strings.Join(v.From(tt.from), " "); got != tt.want {
			t.Errorf("%q from %s: %q, want %q", tt.members, tt.from, got, tt.want)
		}
		if got := v.Successor(tt.from); got != tt.successor {
			t.Errorf("%q after %s: %q, want %q", tt.members, tt.from, got, tt.successor)
		}
	}
}

// TestFromStranger: names that left the ring begin at the same place on every
// node, and not all at the same one.
func TestFromStranger(t *testing.T) {
	v := view("a b c d w*", 3, 2)
	first := map[string]int{}
	for i := range 1000 {
		name := fmt.Sprintf("gone-%d", i)
		order := v.From(name)
		if len(order) != 4 || !slices.Equal(order, v.From(name)) {
			t.Fatalf("%s: %v", name, order)
		}
		first[order[0]]++
	}
	for _, name := range v.Ring() {
		if first[name] < 150 {
			t.Errorf("spread %v", first)
		}
	}
}

func TestKeepers(t *testing.T) {
	for _, tt := range []struct {
		members  string
		replicas int
		origin   string
		placed   string
		want     string
	}{
		{"a", 3, "a", "", "a"},
		{"a b", 3, "b", "", "b a"},
		{"a b c d", 3, "b", "", "b c d"},
		{"a b c d", 3, "d", "", "d a b"},
		{"a b c d", 0, "c", "", "c d a b"},
		{"a b c d", 1, "c", "", "c"},
		{"a w* b v* c", 2, "b", "", "b c"},
		// A changed ring moves no history that has its replicas.
		{"a c b d", 2, "a", "a b", "a b"},
		{"b a c d", 2, "a", "a b", "a b"},
		// Who left is made up for by the next in the ring.
		{"a c d", 3, "a", "a b c", "a c d"},
		{"a", 3, "left", "left a b", "a"},
		{"a b c d e", 3, "a", "a x y", "a b c"},
		// Who drains keeps nothing, its own log neither.
		{"a b- c d", 3, "a", "", "a c d"},
		{"a- b c d", 3, "a", "", "b c d"},
		{"a- b c d", 3, "a", "a b c", "b c d"},
		{"a- b-", 3, "a", "", ""},
		// Who joins keeps from the first.
		{"a b+", 3, "a", "", "a b"},
		// Fewer replicas than before: the first ones in the ring stay.
		{"a b c d", 2, "a", "a b c d", "a b"},
		{"a b c d", 2, "a", "b c d", "b c"},
	} {
		v := view(tt.members, tt.replicas, 2)
		got := v.Keepers(tt.origin, strings.Fields(tt.placed))
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%q r=%d of %s placed %q: %v, want %s", tt.members, tt.replicas, tt.origin, tt.placed, got, tt.want)
		}
	}
}

func TestCopies(t *testing.T) {
	for _, tt := range []struct {
		members string
		copies  int
		want    int
	}{
		{"a", 2, 1}, {"a b", 2, 2}, {"a b c", 2, 2}, {"a b c", 3, 3}, {"a b w*", 3, 2}, {"a b-", 2, 1}, {"a-", 2, 1}, {"a b+", 2, 2},
	} {
		if got := view(tt.members, 0, tt.copies).Copies("a"); got != tt.want {
			t.Errorf("%q copies=%d: %d, want %d", tt.members, tt.copies, got, tt.want)
		}
	}
}

func TestFeeders(t *testing.T) {
	for _, tt := range []struct{ keepers, to, live, want string }{
		{"a b c", "b", "a b c", "a c"},
		{"a b c", "a", "a b c", "c b"},
		{"a b c", "c", "a c", "a"},
		{"a b c", "c", "a b", "b a"}, // whether the receiver is live is not asked
		{"a b c", "c", "", ""},
		{"a b c", "x", "a b c", ""},
		{"a", "a", "a", ""},
		{"", "a", "a", ""},
	} {
		got := ring.Feeders(strings.Fields(tt.keepers), tt.to, among(tt.live))
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%q to %s with %q: %v, want %q", tt.keepers, tt.to, tt.live, got, tt.want)
		}
	}
}

func TestNextVoterChange(t *testing.T) {
	for _, tt := range []struct{ name, members, voters, stable, alive, want string }{
		{"one", "a", "a", "a", "a", ""},
		{"second joined just now", "a b", "a", "a", "a b", ""},
		{"second is stable", "a b", "a", "a b", "a b", "+b"},
		{"both vote, one dead", "a b", "a b", "a", "a", ""},
		{"third", "a b c", "a b", "a b c", "a b c", "+c"},
		{"fourth does not vote", "a b c d", "a b c", "a b c d", "a b c d", ""},
		{"one of three voters dead, nobody to take the vote", "a b c", "a b c", "a b", "a b", ""},
		{"one of three voters dead, a fourth takes the vote", "a b c d", "a b c", "a b d", "a b d", "+d"},
		{"and then the dead one loses it", "a b c d", "a b c d", "a b d", "a b d", "-c"},
		{"a fourth that is alive, but not for long", "a b c d", "a b c", "a b", "a b d", ""},
		{"five", "a b c d e", "a b c", "a b c d e", "a b c d e", "+d"},
		{"five, and one more", "a b c d e", "a b c d", "a b c d e", "a b c d e", "+e"},
		{"six", "a b c d e f", "a b c d e", "a b c d e f", "a b c d e f", ""},
		{"shrunk to four", "a b c d", "a b c d", "a b c d", "a b c d", "-d"},
		{"shrunk to four, a dead one goes first", "a b c d", "a b c d", "a c d", "a c d", "-b"},
		{"a witness votes", "a b w*", "a b", "a b w", "a b w", "+w"},
	} {
		got := view(tt.members, 3, 2).NextVoterChange(ring.Votes{Voters: strings.Fields(tt.voters), Stable: among(tt.stable), Alive: among(tt.alive)})
		text := ""
		if got.Promote != "" {
			text += "+" + got.Promote
		}
		if got.Demote != "" {
			text += "-" + got.Demote
		}
		if text != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, text, tt.want)
		}
	}
}

// TestVotersComeToRest: whoever is alive, the steps end, never demote a live
// voter below what is wanted, and never leave fewer live voters.
func TestVotersComeToRest(t *testing.T) {
	names := "a b c d e f"
	for alive := range 1 << 6 {
		for votes := 1; votes < 1<<6; votes++ {
			pick := func(bits int) string {
				var s []string
				for i, n := range strings.Fields(names) {
					if bits&(1<<i) != 0 {
						s = append(s, n)
					}
				}
				return strings.Join(s, " ")
			}
			live := among(pick(alive))
			voters := strings.Fields(pick(votes))
			count := func() (n int) {
				for _, v := range voters {
					if live(v) {
						n++
					}
				}
				return n
			}
			for step := 0; ; step++ {
				if step > 20 {
					t.Fatalf("alive %q voters %q: no end", pick(alive), pick(votes))
				}
				before := count()
				c := view(names, 3, 2).NextVoterChange(ring.Votes{Voters: voters, Stable: live, Alive: live})
				if c == (ring.VoterChange{}) {
					break
				}
				if c.Promote != "" {
					voters = append(voters, c.Promote)
				} else {
					voters = slices.DeleteFunc(voters, func(v string) bool { return v == c.Demote })
				}
				if count() < min(before, 5) || len(voters) > 6 {
					t.Fatalf("alive %q voters %q: %+v leaves %d live of %v", pick(alive), pick(votes), c, count(), voters)
				}
			}
		}
	}
}

func TestSafeToStop(t *testing.T) {
	yes := func(string) bool { return true }
	for _, tt := range []struct {
		name, members, voters, alive, takes, stop string
		logs                                      []ring.AtRisk
		want                                      string
	}{
		{"all well", "a b c", "a b c", "a b c", "a b c", "a", nil, ""},
		{"two nodes, all well", "a b", "a b", "a b", "a b", "a", nil, ""},
		{"unknown", "a b", "a b", "a b", "a b", "x", nil, "x is not a member of this cluster: see 'chainmail status'"},
		{"alone", "a", "a", "a", "a", "a", nil, "no other node takes mail: start another one first"},
		{"the other is dead", "a b", "a b", "a", "a", "a", nil, "no other node takes mail: start another one first"},
		{"the other is full", "a b", "a b", "a b", "a", "a", nil, "no other node takes mail: start another one first"},
		{"one voter of three is dead", "a b c", "a b c", "a b", "a b", "a", nil, "without a only 1 of 3 voters are there, and 2 are needed to change anything: start the missing ones first"},
		{"one voter of three is dead, not a voter stops", "a b c d", "a b c", "a b d", "a b d", "d", nil, ""},
		{"a witness stops", "a b w*", "a b w", "a b w", "a b", "w", nil, ""},
		{"a witness stops while one is dead", "a b w*", "a b w", "a w", "a", "w", nil, "without w only 1 of 3 voters are there, and 2 are needed to change anything: start the missing ones first"},
		{"only here", "a b", "a b", "a b", "a b", "a", []ring.AtRisk{{Log: "00ff", Only: 1, Few: 9}}, "no other reachable node holds 1 receipt of log 00ff: wait until that mail is copied"},
		{"few", "a b c", "a b c", "a b c", "a b c", "a", []ring.AtRisk{{Log: "00ff", Few: 7}, {Log: "01"}}, "7 receipts of log 00ff would be left with fewer copies than the policy's 2: wait until that mail is copied"},
		{"not known", "a b", "a b", "a b", "a b", "a", []ring.AtRisk{{Log: "00ff", Unknown: true}}, "what the others hold of log 00ff is not known yet: ask again when all members are connected"},
	} {
		got := ring.SafeToStop(ring.StopQuestion{
			View: view(tt.members, 3, 2), Name: tt.stop, Alive: among(tt.alive), Voters: strings.Fields(tt.voters), Logs: tt.logs, Takes: among(tt.takes),
		})
		if strings.Join(got, "\n") != tt.want {
			t.Errorf("%s:\ngot  %q\nwant %q", tt.name, got, tt.want)
		}
	}
	many := ring.SafeToStop(ring.StopQuestion{View: view("a", 3, 2), Name: "a", Alive: yes, Takes: yes, Logs: []ring.AtRisk{{Log: "x", Only: 2}}})
	if len(many) != 2 {
		t.Errorf("all reasons are told: %q", many)
	}
}

func TestRemoveRefusal(t *testing.T) {
	force := "start b again if its disk still exists; 'chainmail remove-node b --force b' gives that mail up"
	for _, tt := range []struct {
		name, members string
		q             ring.RemoveQuestion
		want          string
	}{
		{"nothing lost", "a b", ring.RemoveQuestion{Known: true, Logs: []ring.AtRisk{{Log: "01"}}}, ""},
		{"not a member", "a", ring.RemoveQuestion{}, "b is not a member of this cluster: see 'chainmail status'"},
		{"a witness", "a b*", ring.RemoveQuestion{Alive: true}, ""},
		{"alive", "a b", ring.RemoveQuestion{Alive: true, Known: true, Force: true}, "b is alive: 'chainmail drain-node b' moves its copies to the others and then removes it; 'remove-node' is for the dead"},
		{"drained", "a b-", ring.RemoveQuestion{Alive: true, Drained: true, Known: true}, ""},
		{"the last one", "b w*", ring.RemoveQuestion{Known: true, Force: true}, "b is the only data member: a cluster without one keeps no mail; let another node join first"},
		{"not known", "a b", ring.RemoveQuestion{}, "what b holds is not known, so mail may be lost with it: " + force},
		{"not known, forced", "a b", ring.RemoveQuestion{Force: true}, ""},
		{"lost", "a b", ring.RemoveQuestion{Known: true, Logs: []ring.AtRisk{{Log: "01", Only: 1}, {Log: "02", Only: 5}, {Log: "03", Few: 1}}}, "only b holds 1 receipt of log 01, 5 receipts of log 02: " + force},
		{"lost, forced", "a b", ring.RemoveQuestion{Known: true, Force: true, Logs: []ring.AtRisk{{Log: "01", Only: 1}}}, ""},
		{"others not known", "a b", ring.RemoveQuestion{Known: true, Logs: []ring.AtRisk{{Log: "01", Unknown: true}}}, "what the others hold of log 01 is not known: " + force},
	} {
		tt.q.View, tt.q.Name = view(tt.members, 3, 2), "b"
		if got := ring.RemoveRefusal(tt.q); strings.Join(got, "\n") != tt.want {
			t.Errorf("%s:\ngot  %q\nwant %q", tt.name, got, tt.want)
		}
	}
}

func TestCheckName(t *testing.T) {
	for name, want := range map[string]string{
		"a": "", "node-1.example_x": "", "0": "", strings.Repeat("x", 63): "",
		"": "a node needs a name", "A": "cannot be a node's name", "a b": "cannot be a node's name", "-a": "cannot be a node's name",
		"a.": "cannot be a node's name", "ä": "cannot be a node's name", "a/b": "cannot be a node's name", "a\n": "cannot be a node's name",
		strings.Repeat("x", 64): "is 64 characters long",
	} {
		err := ring.CheckName(name)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", name, err, want)
		}
	}
}

func TestCheckView(t *testing.T) {
	if err := view("a b w*", 3, 2).Check(); err != nil {
		t.Error(err)
	}
	for name, wrong := range map[string]func(*ring.View){
		"no cluster":    func(v *ring.View) { v.Cluster = "" },
		"epoch 0":       func(v *ring.View) { v.Epoch = 0 },
		"name twice":    func(v *ring.View) { v.Members[1].Name = "a" },
		"ID twice":      func(v *ring.View) { v.Members[1].ID = v.Members[0].ID },
		"no ID":         func(v *ring.View) { v.Members[1].ID = "" },
		"role":          func(v *ring.View) { v.Members[1].Role = "king" },
		"state":         func(v *ring.View) { v.Members[1].State = "asleep" },
		"name":          func(v *ring.View) { v.Members[1].Name = "B" },
		"ack_timeout":   func(v *ring.View) { v.Policies.AckTimeout = time.Hour },
		"when_short":    func(v *ring.View) { v.Policies.WhenShort = "" },
		"backfill_rate": func(v *ring.View) { v.Policies.BackfillRate = -1 },
		"copies":        func(v *ring.View) { v.Policies.Copies = 17 },
	} {
		v := view("a b", 3, 2)
		wrong(&v)
		if v.Check() == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
}
