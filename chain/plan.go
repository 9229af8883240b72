package chain

import (
	"slices"
	"time"

	"chainmail/archive/record"
	"chainmail/membership/ring"
)

// duty says which nodes must keep a stretch of a log, by the committed view:
// in the order of the ring, from the log's origin on.
type duty struct {
	record.Range
	keepers []string
}

// duties are those of a whole log.
func duties(v ring.View, l record.Log) []duty {
	var all []duty
	for _, s := range l.Spans() {
		keepers := v.Keepers(l.Origin, s.Nodes)
		if n := len(all); n > 0 && slices.Equal(all[n-1].keepers, keepers) {
			all[n-1].Last = s.Last
			continue
		}
		all = append(all, duty{s.Range, keepers})
	}
	return all
}

// kept is what a node must keep of a log.
func kept(all []duty, name string) (r record.Ranges) {
	for _, d := range all {
		if slices.Contains(d.keepers, name) {
			r = r.Union(record.Ranges{d.Range})
		}
	}
	return r
}

// keepersAt are the nodes that must keep one receipt.
func keepersAt(all []duty, s record.Seq) []string {
	for _, d := range all {
		if d.First <= s && s <= d.Last {
			return d.keepers
		}
	}
	return nil
}

// feeders are the nodes that send a keeper what it lacks, the best first: the
// live keepers (see ring.Feeders). The origin of a log counts as one even when
// it keeps its log no longer, because it drains: it is where new receipts
// begin their way. Who is not among them but holds something comes last.
func feeders(keepers []string, origin, to string, live func(string) bool) []string {
	if !slices.Contains(keepers, origin) && origin != to && live(origin) {
		keepers = append([]string{origin}, keepers...)
	}
	return ring.Feeders(keepers, to, live)
}

// question asks what one node sends another of one log now. Nothing in it is
// changed by the answer, and the answer depends on nothing else.
type question struct {
	self, to string
	origin   string
	duties   []duty
	mine     record.Ranges                             // what self holds
	held     record.Ranges                             // what to holds
	live     func(name string) bool                    // true for self
	holds    func(name string) record.Ranges           // what another holds
	past     func(time.Duration) (record.Ranges, bool) // what to lacked that long ago; false: it is not known, this is the first that is
	given    record.Ranges                             // what self has sent to since past begins
}

// answer is what to send, including what is on its way already.
func (q question) answer() (send record.Ranges) {
	for _, d := range q.duties {
		if !slices.Contains(d.keepers, q.to) {
			continue
		}
		lacks := q.mine.Intersect(record.Ranges{d.Range}).Minus(q.held)
		if len(lacks) == 0 {
			continue
		}
		all := feeders(d.keepers, q.origin, q.to, q.live)
		rank := slices.Index(all, q.self)
		if rank < 0 {
			rank = len(all)
		}
		wait := rank
		if q.to == q.origin { // it had all of them; so what it lacks is either damaged or only not known yet
			wait = max(wait, 1)
		}
		send = send.Union(q.turn(lacks, all[:rank], time.Duration(wait)*standby))
	}
	return send
}

// turn is the part of lacks that it is self's turn to send: with nothing to
// wait for, all of it. Else what has been lacking for the time given; and while
// better feeders make headway with what had been lacking as long before, only
// what none of them holds.
func (q question) turn(lacks record.Ranges, better []string, wait time.Duration) record.Ranges {
	if wait == 0 {
		return lacks
	}
	recent, ok := q.past(wait)
	if !ok {
		return nil
	}
	stuck := lacks.Intersect(recent)
	if len(stuck) == 0 || len(better) == 0 {
		return stuck
	}
	if !q.headway(lacks, wait, wait) && !q.headway(lacks, lumps, wait) {
		return stuck
	}
	for _, name := range better {
		stuck = stuck.Minus(q.holds(name))
	}
	return stuck
}

// lumps is how far apart the steps of a slow but steady feeder may be.
const lumps = 10 * time.Second

// headway reports whether to has been given, by others, anything that it had
// been lacking for some time before a window that ends now. In the first
// moments of a session nobody can tell; then it is assumed.
func (q question) headway(lacks record.Ranges, window, before time.Duration) bool {
	then, _ := q.past(window)
	long, ok := q.past(window + before)
	if !ok && window == before {
		return true
	}
	return len(long.Intersect(then).Minus(lacks).Minus(q.given)) > 0
}

// cut takes at most n numbers from the front of a set.
func cut(r record.Ranges, n uint64) record.Ranges {
	for i, x := range r {
		size := uint64(x.Last-x.First) + 1
		if size >= n {
			head := slices.Clone(r[:i+1])
			head[i].Last = x.First + record.Seq(n) - 1
			return head
		}
		n -= size
	}
	return r
}

// above is the part of a set that is greater than s.
func above(r record.Ranges, s record.Seq) record.Ranges {
	return r.Intersect(record.Ranges{{First: s + 1, Last: ^record.Seq(0)}})
}
