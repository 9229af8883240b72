package testcluster

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"chainmail/archive/record"
	"chainmail/node/api"
)

// TestCheckFindsFaults: a check that finds nothing wrong is worth something only
// when it does find what is wrong.
func TestCheckFindsFaults(t *testing.T) {
	const store = "00000000000000aa"
	at := func(seq int) string { return fmt.Sprintf("%s:%d", store, seq) }
	sent := []mail{{n: 0}, {n: 1}, {n: 2}}
	for i := range sent {
		sent[i].hash = sha256.Sum256([]byte{byte(i)})
		sent[i].position = at(i + 1)
	}
	knows := func(h record.Hash) bool { return h == sent[0].hash || h == sent[1].hash || h == sent[2].hash }
	healthy := func() map[string]inventory {
		all := map[string]inventory{}
		for _, name := range []string{"a", "b"} {
			all[name] = inventory{}
			for _, m := range sent {
				all[name][m.position] = entry{m.hash, 1, api.Receipt{Position: m.position, To: []string{"x"}}}
			}
		}
		return all
	}
	alter := func(e entry, f func(*entry)) entry { f(&e); return e }
	for _, tt := range []struct {
		name string
		harm func(all map[string]inventory)
		want string
	}{
		{"healthy", func(map[string]inventory) {}, ""},
		{"missing", func(all map[string]inventory) { delete(all["b"], at(2)) }, "is on [a], want 2 nodes"},
		{"lost", func(all map[string]inventory) { delete(all["a"], at(3)); delete(all["b"], at(3)) }, "is on [], want 2 nodes"},
		{"two contents", func(all map[string]inventory) {
			all["b"][at(1)] = alter(all["b"][at(1)], func(e *entry) { e.hash = sent[2].hash })
		}, "two contents"},
		{"two envelopes", func(all map[string]inventory) {
			all["b"][at(1)] = alter(all["b"][at(1)], func(e *entry) { e.receipt.To = []string{"y"} })
		}, "two contents"},
		{"other content everywhere", func(all map[string]inventory) {
			for _, held := range all {
				held[at(1)] = alter(held[at(1)], func(e *entry) { e.hash = sent[2].hash })
			}
		}, "has SHA-256"},
		{"never sent", func(all map[string]inventory) { all["a"][at(4)] = entry{hash: record.Hash{1}} }, "never sent"},
		{"a mark too far", func(all map[string]inventory) { delete(all["a"], at(2)); delete(all["b"], at(2)) }, `it says that it holds "1-3" of log ` + store + `, and lists "1,3"`},
		{"more than is told", func(all map[string]inventory) { all["a"]["00000000000000bb:1"] = all["a"][at(1)] }, "does not say that it holds it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			all := healthy()
			tt.harm(all)
			var found []string
			for _, err := range []error{
				checkEqual(all), checkAcknowledged(all, sent, 2), checkUnknown(all, knows),
				compareHeld(all["a"], []api.LogHeld{{Store: store, Held: "1-3"}}),
			} {
				if err != nil {
					found = append(found, err.Error())
				}
			}
			if got := strings.Join(found, "\n"); !strings.Contains(got, tt.want) || (got == "") != (tt.want == "") {
				t.Errorf("found %q, want %q", got, tt.want)
			}
		})
	}
}

func TestLedger(t *testing.T) {
	l := newLedger(7)
	first, second := l.next("a"), l.next("b")
	if first.hash == second.hash || first.hash != sha256.Sum256(first.text(7)) || len(first.text(7)) != first.size {
		t.Errorf("messages %+v and %+v", first, second)
	}
	l.acknowledge(second, "p:1")
	if got := l.acknowledged(); len(got) != 1 || got[0].hash != second.hash {
		t.Errorf("acknowledged: %+v", got)
	}
	if !l.knows(first.hash) || l.knows(record.Hash{}) {
		t.Error("it does not know what was sent")
	}
	if l.giveUp("p:2") || !l.giveUp("p:1") || len(l.acknowledged()) != 0 {
		t.Error("given up wrongly")
	}
}
