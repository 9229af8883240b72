package node

import (
	"cmp"
	"maps"
	"slices"

	"chainmail/archive/record"
	"chainmail/membership/ring"
)

// notHanded counts the receipts of mine that some of their keepers other than
// self lack: what a node must not take away with it. peers gives what each
// other member holds; a keeper of which nothing is known lacks everything.
func notHanded(v ring.View, self string, mine []record.Log, peers map[string][]record.Log) (n uint64) {
	for _, l := range mine {
		for _, span := range l.Spans() {
			held := l.Held.Intersect(record.Ranges{span.Range})
			if len(held) == 0 {
				continue
			}
			keepers := slices.DeleteFunc(v.Keepers(l.Origin, span.Nodes), func(name string) bool { return name == self })
			if len(keepers) == 0 {
				n += held.Count()
				continue
			}
			var lacked record.Ranges
			for _, name := range keepers {
				lacked = lacked.Union(held.Minus(heldBy(peers[name], l.Store)))
			}
			n += lacked.Count()
		}
	}
	return n
}

// owed is what name must keep of all that the peers hold.
func owed(v ring.View, name string, peers map[string][]record.Log) (logs []record.Log) {
	for _, l := range union(peers) {
		var keeps record.Ranges
		for _, span := range l.Spans() {
			if slices.Contains(v.Keepers(l.Origin, span.Nodes), name) {
				keeps = keeps.Union(l.Held.Intersect(record.Ranges{span.Range}))
			}
		}
		l.Held = keeps
		logs = append(logs, l)
	}
	return logs
}

// union is every log that some node holds, with all that any of them holds, in
// the order of the stores.
func union(held map[string][]record.Log) []record.Log {
	logs := map[record.StoreID]record.Log{}
	for _, theirs := range held {
		for _, l := range theirs {
			u, known := logs[l.Store]
			if !known || len(l.Placements) > len(u.Placements) {
				u.Store, u.Origin, u.Placements = l.Store, l.Origin, l.Placements
			}
			u.Held = u.Held.Union(l.Held)
			logs[l.Store] = u
		}
	}
	return slices.SortedFunc(maps.Values(logs), func(a, b record.Log) int { return cmp.Compare(a.Store, b.Store) })
}

func heldBy(logs []record.Log, s record.StoreID) record.Ranges {
	if i := slices.IndexFunc(logs, func(l record.Log) bool { return l.Store == s }); i >= 0 {
		return logs[i].Held
	}
	return nil
}
