package record

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestRangesAgreeWithSets compares every operation with the same on plain sets.
func TestRangesAgreeWithSets(t *testing.T) {
	const size = 24
	random := rand.New(rand.NewPCG(1, 2))
	draw := func() (r Ranges, set [size + 2]bool) {
		for n := random.IntN(size); n > 0; n-- {
			s := Seq(random.IntN(size) + 1)
			set[s] = true
			r = r.Add(s)
		}
		return r, set
	}
	check := func(name string, got Ranges, want func(i int) bool) {
		t.Helper()
		var count uint64
		for i := 1; i < size+2; i++ {
			if got.Has(Seq(i)) != want(i) {
				t.Fatalf("%s = %v: has %d: %t", name, got, i, !want(i))
			}
			if want(i) {
				count++
			}
		}
		if got.Count() != count {
			t.Fatalf("%s = %v: count %d, want %d", name, got, got.Count(), count)
		}
		again, err := ParseRanges(got.String())
		if err != nil || !cmp.Equal(again, got) && got.Count() > 0 {
			t.Fatalf("%s = %v, parsed %v, %v", name, got, again, err)
		}
	}
	for range 5000 {
		a, inA := draw()
		b, inB := draw()
		check("a", a, func(i int) bool { return inA[i] })
		check("a or b", a.Union(b), func(i int) bool { return inA[i] || inB[i] })
		check("a and b", a.Intersect(b), func(i int) bool { return inA[i] && inB[i] })
		check("a without b", a.Minus(b), func(i int) bool { return inA[i] && !inB[i] })
		check("a again", a, func(i int) bool { return inA[i] })
		mark := 0
		for inA[mark+1] {
			mark++
		}
		if a.Mark() != Seq(mark) {
			t.Fatalf("mark of %v is %d, want %d", a, a.Mark(), mark)
		}
	}
}

// TestRangesToTheEnd: spans reach to the largest number there is.
func TestRangesToTheEnd(t *testing.T) {
	const end = ^Seq(0)
	all := Of(1, end)
	for name, got := range map[string]Ranges{
		"union":     Of(5, end).Union(Of(1, 4)),
		"with one":  all.Union(Of(7, 7)),
		"intersect": all.Intersect(all),
	} {
		if !cmp.Equal(got, all) {
			t.Errorf("%s: %v, want %v", name, got, all)
		}
	}
}

func FuzzParseRanges(f *testing.F) {
	f.Add("1-1000,1005,1010-1020")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRanges(s)
		if err != nil {
			return
		}
		again, err := ParseRanges(r.String())
		if err != nil || !cmp.Equal(r, again) {
			t.Fatalf("%q is %v, again %v, %v", s, r, again, err)
		}
	})
}

func TestSpans(t *testing.T) {
	const end = ^Seq(0)
	a, ab, bc := []string{"a"}, []string{"a", "b"}, []string{"b", "c"}
	for _, test := range []struct {
		placements []Placement
		want       []Span
	}{
		{nil, []Span{{Range{1, end}, nil}}},
		{[]Placement{{1, a}}, []Span{{Range{1, end}, a}}},
		{[]Placement{{7, a}}, []Span{{Range{1, end}, a}}},
		{[]Placement{{1, a}, {10, ab}}, []Span{{Range{1, 9}, a}, {Range{10, end}, ab}}},
		{[]Placement{{1, a}, {1, ab}, {10, a}, {10, bc}}, []Span{{Range{1, 9}, ab}, {Range{10, end}, bc}}},
	} {
		if d := cmp.Diff(test.want, Log{Placements: test.placements}.Spans()); d != "" {
			t.Errorf("spans of %v (-want +got):\n%s", test.placements, d)
		}
	}
}
