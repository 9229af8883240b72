package node

import (
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

// onlyHere counts the receipts of mine that none of the peers holds.
func onlyHere(mine []record.Log, peers map[string][]record.Log) (n uint64) {
	for _, l := range mine {
		alone := l.Held
		for _, logs := range peers {
			alone = alone.Minus(heldBy(logs, l.Store))
		}
		n += alone.Count()
	}
	return n
}

func heldBy(logs []record.Log, s record.StoreID) record.Ranges {
	if i := slices.IndexFunc(logs, func(l record.Log) bool { return l.Store == s }); i >= 0 {
		return logs[i].Held
	}
	return nil
}
