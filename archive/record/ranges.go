package record

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Range is the sequence numbers First … Last, both included.
type Range struct {
	First, Last Seq
}

func (r Range) String() string {
	if r.First == r.Last {
		return r.First.String()
	}
	return r.First.String() + "-" + r.Last.String()
}

// Ranges is a set of sequence numbers: ranges in rising order that neither
// overlap nor touch. The nil value is the empty set. Its methods never change
// it; what they return may share its memory, so treat a set as immutable. It
// prints as "1-1000,1005,1010-1020".
type Ranges []Range

// Of is the set of the numbers from first to last; empty when last < first.
func Of(first, last Seq) Ranges {
	if last < first {
		return nil
	}
	return Ranges{{first, last}}
}

// Mark is how far the set reaches from 1 on without a gap; 0 when 1 is
// missing.
func (r Ranges) Mark() Seq {
	if len(r) > 0 && r[0].First == 1 {
		return r[0].Last
	}
	return 0
}

// Last is the largest number; 0 when there is none.
func (r Ranges) Last() Seq {
	if len(r) == 0 {
		return 0
	}
	return r[len(r)-1].Last
}

// First is the smallest number; 0 when there is none.
func (r Ranges) First() Seq {
	if len(r) == 0 {
		return 0
	}
	return r[0].First
}

// Count is how many numbers the set has.
func (r Ranges) Count() (n uint64) {
	for _, x := range r {
		n += uint64(x.Last-x.First) + 1
	}
	return n
}

// Has reports whether s is in the set.
func (r Ranges) Has(s Seq) bool {
	i, found := slices.BinarySearchFunc(r, s, func(x Range, s Seq) int { return cmp.Compare(x.Last, s) })
	return found || i < len(r) && r[i].First <= s
}

// Add is the set with one more number.
func (r Ranges) Add(s Seq) Ranges {
	if n := len(r); n > 0 && r[n-1].Last+1 == s { // a log that grows
		grown := slices.Clone(r)
		grown[n-1].Last = s
		return grown
	}
	return r.Union(Ranges{{s, s}})
}

// Union is what is in either set.
func (r Ranges) Union(o Ranges) Ranges {
	switch {
	case len(r) == 0:
		return o
	case len(o) == 0:
		return r
	}
	u := make(Ranges, 0, len(r)+len(o))
	for len(r) > 0 || len(o) > 0 {
		var next Range
		if len(o) == 0 || len(r) > 0 && r[0].First <= o[0].First {
			next, r = r[0], r[1:]
		} else {
			next, o = o[0], o[1:]
		}
		if n := len(u); n > 0 && next.First-1 <= u[n-1].Last {
			u[n-1].Last = max(u[n-1].Last, next.Last)
		} else {
			u = append(u, next)
		}
	}
	return u
}

// Minus is what is in r and not in o.
func (r Ranges) Minus(o Ranges) (d Ranges) {
	for _, x := range r {
		for len(o) > 0 && o[0].Last < x.First {
			o = o[1:]
		}
		for _, y := range o {
			if y.First > x.Last {
				break
			}
			if y.First > x.First {
				d = append(d, Range{x.First, y.First - 1})
			}
			if y.Last >= x.Last {
				x.First = 1
				x.Last = 0
				break
			}
			x.First = y.Last + 1
		}
		if x.First <= x.Last {
			d = append(d, x)
		}
	}
	return d
}

// Intersect is what is in both sets.
func (r Ranges) Intersect(o Ranges) (both Ranges) {
	for len(r) > 0 && len(o) > 0 {
		if first, last := max(r[0].First, o[0].First), min(r[0].Last, o[0].Last); first <= last {
			both = append(both, Range{first, last})
		}
		if r[0].Last < o[0].Last {
			r = r[1:]
		} else {
			o = o[1:]
		}
	}
	return both
}

func (r Ranges) String() string {
	parts := make([]string, len(r))
	for i, x := range r {
		parts[i] = x.String()
	}
	return strings.Join(parts, ",")
}

// ParseRanges reads what String prints.
func ParseRanges(s string) (Ranges, error) {
	if s == "" {
		return nil, nil
	}
	var r Ranges
	for part := range strings.SplitSeq(s, ",") {
		a, b, dash := strings.Cut(part, "-")
		if !dash {
			b = a
		}
		first, err1 := strconv.ParseUint(a, 10, 64)
		last, err2 := strconv.ParseUint(b, 10, 64)
		x := Range{Seq(first), Seq(last)}
		if err1 != nil || err2 != nil || first == 0 || last < first || len(r) > 0 && x.First-1 <= r.Last() {
			return nil, fmt.Errorf("%q is not a set of sequence numbers: want rising ranges such as 1-1000,1005", s)
		}
		r = append(r, x)
	}
	return r, nil
}

// MarshalText and UnmarshalText make JSON use the printed form.
func (r Ranges) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

func (r *Ranges) UnmarshalText(b []byte) (err error) {
	*r, err = ParseRanges(string(b))
	return err
}

// Log is what a node knows and holds of one log.
type Log struct {
	Store  StoreID `json:"store"`
	Origin string  `json:"origin"` // name of the node whose store it is
	// Placements say who keeps the log, from which number on, in rising order:
	// each time the ring gives the log other keepers, the origin adds one.
	Placements []Placement `json:"placements,omitempty"`
	Held       Ranges      `json:"held"` // durable and, as far as is known, undamaged
}

// Placement names the nodes that were to keep a log's receipts from From on,
// the origin first, in the order of the ring at that time. Of two with the same
// From the later one counts.
type Placement struct {
	From  Seq      `json:"from"`
	Nodes []string `json:"nodes"`
}

// Span is a stretch of a log that has one placement.
type Span struct {
	Range
	Nodes []string
}

// Spans cuts the numbers 1 … ∞ by the placements: the first one reaches back
// to 1, the last one has no end, and one that another replaced before there was
// a receipt has no span. A log without placements is one span without nodes.
func (l Log) Spans() []Span {
	const end = ^Seq(0)
	if len(l.Placements) == 0 {
		return []Span{{Range: Range{1, end}}}
	}
	spans := make([]Span, 0, len(l.Placements))
	for _, p := range l.Placements {
		next := Span{Range{p.From, end}, p.Nodes}
		switch n := len(spans); {
		case n == 0:
			next.First = 1
			spans = append(spans, next)
		case spans[n-1].First == p.From:
			spans[n-1] = next
		default:
			spans[n-1].Last = p.From - 1
			spans = append(spans, next)
		}
	}
	return spans
}
