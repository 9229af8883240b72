package chain

import (
	"slices"
	"strings"
	"testing"
	"time"

	"chainmail/archive/record"
	"chainmail/membership/ring"
)

func set(t *testing.T, s string) record.Ranges {
	t.Helper()
	r, err := record.ParseRanges(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func testView(replicas int, members string) ring.View {
	v := ring.View{Policies: ring.Policies{Copies: 2, Replicas: replicas}}
	for _, name := range strings.Fields(members) {
		state := ring.Active
		if rest, draining := strings.CutPrefix(name, "-"); draining {
			name, state = rest, ring.Draining
		}
		v.Members = append(v.Members, ring.Member{Name: name, Role: ring.Data, State: state})
	}
	return v
}

func TestDuties(t *testing.T) {
	log := record.Log{Origin: "b", Placements: []record.Placement{
		{From: 1, Nodes: []string{"b", "c", "d"}},
		{From: 101, Nodes: []string{"b", "c"}},
		{From: 201, Nodes: []string{"b", "c", "a"}},
	}}
	for _, tt := range []struct {
		replicas      int
		members, name string
		want          string // kept up to 300
	}{
		{3, "a b c d", "b", "1-300"},
		{3, "a b c d", "d", "1-200"},       // history of 2 gets its third copy
		{3, "a b c d", "a", "201-300"},     // the ring would choose d today: it stays
		{2, "a b c d", "d", ""},            // fewer replicas: the first ones keep it
		{3, "a b c", "a", "1-300"},         // d left
		{3, "a b -c d", "c", ""},           // c drains
		{3, "a b -c d", "d", "1-300"},      //
		{0, "a b c d", "a", "1-300"},       // all
		{3, "c d a", "c", "1-300"},         // the origin left
		{3, "c d a", "x", ""},              // not a member
		{1, "a b c d", "b", "1-300"},       //
		{1, "a -b c d", "c", "1-300"},      //
		{3, "a b c d e f g", "e", ""},      // joined later: moves no history
		{3, "a b c d e f g", "d", "1-200"}, //
	} {
		got := kept(duties(testView(tt.replicas, tt.members), log), tt.name).Intersect(record.Of(1, 300))
		if got.String() != tt.want {
			t.Errorf("%d replicas on %s: %s keeps %q, want %q", tt.replicas, tt.members, tt.name, got, tt.want)
		}
	}
}

func TestWhoSendsWhat(t *testing.T) {
	// All logs are of a and kept by a, b and c, which are fed by a, b (its
	// standby is a) and c. A past is "1s:1-9": what was lacking that long ago.
	for _, tt := range []struct {
		name     string
		self, to string
		mine     string
		held     string
		others   map[string]string
		dead     string
		past     map[time.Duration]string
		given    string
		view     ring.View
		want     string
	}{
		{name: "the one before sends at once", self: "a", to: "b", mine: "1-10", held: "1-4,6", want: "5,7-10"},
		{name: "all there", self: "a", to: "b", mine: "1-10", held: "1-10"},
		{name: "a standby does not", self: "a", to: "c", mine: "1-10"},
		{name: "the one before is dead", self: "a", to: "c", mine: "1-10", dead: "b", want: "1-10"},
		{
			name: "a standby after its time", self: "a", to: "c", mine: "1-10", held: "1-2",
			past: map[time.Duration]string{2 * time.Second: "3-8", 4 * time.Second: "3-5"}, want: "3-8",
		},
		{
			name: "not while the other makes headway", self: "a", to: "c", mine: "1-100", held: "1-50", others: map[string]string{"b": "1-100"},
			past: map[time.Duration]string{2 * time.Second: "31-90", 4 * time.Second: "11-90"},
		},
		{
			name: "but what the other does not hold", self: "a", to: "c", mine: "1-100", held: "1-50", others: map[string]string{"b": "1-59,61-100"},
			past: map[time.Duration]string{2 * time.Second: "31-90", 4 * time.Second: "11-90"}, want: "60",
		},
		{
			name: "its own headway does not stop it", self: "a", to: "c", mine: "1-100", held: "1-50", others: map[string]string{"b": "1-100"},
			past: map[time.Duration]string{2 * time.Second: "31-90", 4 * time.Second: "11-90"}, given: "20-50", want: "51-90",
		},
		{
			name: "too early to tell", self: "a", to: "c", mine: "1-10", others: map[string]string{"b": "1-10"},
			past: map[time.Duration]string{2 * time.Second: "1-10"},
		},
		{
			name: "not while it makes headway in lumps", self: "a", to: "c", mine: "1-100", held: "1-50", others: map[string]string{"b": "1-100"},
			past: map[time.Duration]string{2 * time.Second: "51-90", 4 * time.Second: "51-90", 10 * time.Second: "41-90", 12 * time.Second: "31-90"},
		},
		{
			name: "nor when the session is young", self: "a", to: "c", mine: "1-100", held: "1-50", others: map[string]string{"b": "1-100"},
			past: map[time.Duration]string{2 * time.Second: "51-90", 4 * time.Second: "51-90", -10 * time.Second: "41-90", -12 * time.Second: "41-90"},
		},
		{
			name: "but new trouble is its trouble", self: "a", to: "c", mine: "1-100", held: "1-90", others: map[string]string{"b": "1-100"},
			past: map[time.Duration]string{2 * time.Second: "91-95", 4 * time.Second: "90", 10 * time.Second: "", 12 * time.Second: ""}, want: "91-95",
		},
		{name: "nothing goes back to the origin", self: "c", to: "a", mine: "1-10", held: "1-9"},
		{
			name: "but what it has lost", self: "c", to: "a", mine: "1-10", held: "1-3,5-9",
			past: map[time.Duration]string{2 * time.Second: "4"}, want: "4",
		},
		{name: "who need not keep it gets nothing", self: "a", to: "d", mine: "1-10"},
		{
			name: "who holds too much hands it over", self: "d", to: "b", mine: "5-10", others: map[string]string{"a": "1-4,8-10"}, dead: "c",
			past: map[time.Duration]string{2 * time.Second: "5-10", 4 * time.Second: "5-10"}, want: "5-10",
		},
		{name: "at once when no keeper lives", self: "d", to: "b", mine: "5-10", dead: "a c", want: "5-10"},
		{
			name: "a draining origin feeds the first keeper", self: "a", to: "b", mine: "1-10", want: "1-10",
			view: testView(2, "-a b c d"),
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.view.Members == nil {
				tt.view = testView(3, "a b c d")
			}
			log := record.Log{Origin: "a", Placements: []record.Placement{{From: 1, Nodes: []string{"a", "b", "c"}}}}
			q := question{
				self: tt.self, to: tt.to, origin: "a", duties: duties(tt.view, log),
				mine: set(t, tt.mine), held: set(t, tt.held), given: set(t, tt.given),
				live:  func(name string) bool { return !slices.Contains(strings.Fields(tt.dead), name) },
				holds: func(name string) record.Ranges { return set(t, tt.others[name]) },
				past: func(ago time.Duration) (record.Ranges, bool) {
					s, ok := tt.past[ago]
					if !ok {
						s = tt.past[-ago] // the first that is known
					}
					return set(t, s), ok
				},
			}
			if got := q.answer(); got.String() != tt.want {
				t.Errorf("%s sends %s %q, want %q", tt.self, tt.to, got, tt.want)
			}
		})
	}
}

func TestHistory(t *testing.T) {
	var h history
	begin := time.Unix(1000, 0)
	if _, ok := h.at(begin); ok {
		t.Error("an empty history knows something")
	}
	for i := range 100 {
		h.note(begin.Add(time.Duration(i)*time.Second), record.Of(1, record.Seq(i+1)), 10*time.Second)
	}
	if len(h.moments) > 12 {
		t.Errorf("%d moments are kept", len(h.moments))
	}
	now := begin.Add(99 * time.Second)
	for _, tt := range []struct {
		ago  time.Duration
		want string
	}{{0, "1-100"}, {2 * time.Second, "1-98"}, {2500 * time.Millisecond, "1-97"}, {10 * time.Second, "1-90"}} {
		if got, ok := h.at(now.Add(-tt.ago)); !ok || got.String() != tt.want {
			t.Errorf("%v ago: %q, %v, want %q", tt.ago, got, ok, tt.want)
		}
	}
	if _, ok := h.at(begin); ok {
		t.Error("it is not forgotten")
	}
}

func TestCut(t *testing.T) {
	for _, tt := range []struct {
		set  string
		n    uint64
		want string
	}{
		{"1-10", 3, "1-3"}, {"1-10", 10, "1-10"}, {"1-10", 11, "1-10"}, {"1,5-9", 3, "1,5-6"}, {"1,5-9", 1, "1"}, {"", 5, ""},
	} {
		if got := cut(set(t, tt.set), tt.n); got.String() != tt.want {
			t.Errorf("%d of %q: %q, want %q", tt.n, tt.set, got, tt.want)
		}
	}
}

func TestThin(t *testing.T) {
	others := []record.Ranges{set(t, "1-5"), set(t, "4-8"), set(t, "5,20")}
	for want, thinner := range map[int]string{0: "", 1: "", 2: "9-10", 3: "1-3,6-10", 4: "1-4,6-10", 5: "1-10"} {
		if got := thin(set(t, "1-10"), others, want); got.String() != thinner {
			t.Errorf("fewer than %d copies: %q, want %q", want, got, thinner)
		}
	}
}

func TestLacking(t *testing.T) {
	all := []duty{{record.Range{First: 1, Last: 50}, []string{"a", "b"}}, {record.Range{First: 51, Last: ^record.Seq(0)}, []string{"a", "c"}}}
	holders := []holder{{set(t, "1-40,45"), true}, {set(t, "1-60"), false}}
	for _, tt := range []struct{ name, held, lacks, lost string }{
		{"a", "1-10", "11-100", "41-44,46-100"},
		{"b", "1-10", "11-50", "41-44,46-50"},
		{"c", "1-10,99", "51-98,100", "51-98,100"},
		{"d", "", "", ""},
	} {
		lacks, lost := lacking(all, tt.name, 100, set(t, tt.held), holders)
		if lacks.String() != tt.lacks || lost.String() != tt.lost {
			t.Errorf("%s lacks %q, lost %q; want %q, %q", tt.name, lacks, lost, tt.lacks, tt.lost)
		}
	}
}
