package chain

import (
	"testing"

	"chainmail/archive/record"
)

func TestBelief(t *testing.T) {
	const s = record.StoreID(7)
	hello := func(boot string, generation uint64, held string) func(*belief) bool {
		return func(b *belief) bool {
			return b.hello(boot, generation, []record.Log{{Store: s, Held: set(t, held)}})
		}
	}
	confirm := func(boot string, generation uint64, held string) func(*belief) bool {
		return func(b *belief) bool { return b.confirm(boot, confirmation{generation, s, set(t, held)}) }
	}
	type step struct {
		do   func(*belief) bool
		took bool
		held string
	}
	for name, steps := range map[string][]step{
		"replies add":                         {{hello("x", 1, "1-9"), true, "1-9"}, {confirm("x", 2, "10"), true, "1-10"}, {confirm("x", 3, "12"), true, "1-10,12"}},
		"nothing before the first hello":      {{confirm("x", 2, "10"), false, ""}},
		"a hello that passed a reply":         {{hello("x", 1, "1-9"), true, "1-9"}, {confirm("x", 3, "10"), true, "1-10"}, {hello("x", 2, "1-9"), true, "1-10"}},
		"a reply that a hello passed":         {{hello("x", 1, "1-9"), true, "1-9"}, {hello("x", 3, "1-8"), true, "1-8"}, {confirm("x", 2, "9"), false, "1-8"}},
		"damage ends belief":                  {{hello("x", 1, "1-9"), true, "1-9"}, {confirm("x", 2, "10"), true, "1-10"}, {hello("x", 3, "1-8"), true, "1-8"}},
		"damage beside a newer reply":         {{hello("x", 1, "1-9"), true, "1-9"}, {confirm("x", 3, "10"), true, "1-10"}, {hello("x", 2, "1-5"), true, "1-5,10"}},
		"an old hello is nothing":             {{hello("x", 5, "1-9"), true, "1-9"}, {hello("x", 4, "1-20"), false, "1-9"}},
		"a new life replaces":                 {{hello("x", 50, "1-9"), true, "1-9"}, {confirm("x", 51, "10"), true, "1-10"}, {hello("y", 1, "1-3"), true, "1-3"}},
		"a reply of the old life is nothing":  {{hello("x", 50, "1-9"), true, "1-9"}, {hello("y", 1, "1-3"), true, "1-3"}, {confirm("x", 99, "4-9"), false, "1-3"}},
		"a reply of an unheard life, neither": {{hello("x", 50, "1-9"), true, "1-9"}, {confirm("y", 99, "10"), false, "1-9"}},
	} {
		t.Run(name, func(t *testing.T) {
			var b belief
			for i, step := range steps {
				if took := step.do(&b); took != step.took || b.held(s).String() != step.held {
					t.Errorf("step %d: %v, %q; want %v, %q", i, took, b.held(s), step.took, step.held)
				}
			}
		})
	}
}

func TestBeliefForgetsOldReplies(t *testing.T) {
	var b belief
	b.hello("x", 1, nil)
	for g := uint64(2); g < 1000; g++ {
		b.confirm("x", confirmation{g, 7, record.Of(record.Seq(g), record.Seq(g))})
	}
	b.hello("x", 999, []record.Log{{Store: 7, Held: record.Of(2, 998)}})
	b.hello("x", 1001, []record.Log{{Store: 7, Held: record.Of(2, 999)}})
	if len(b.later) != 0 {
		t.Errorf("%d replies are remembered", len(b.later))
	}
}
