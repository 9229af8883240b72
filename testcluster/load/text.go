package load

import (
	"math/rand/v2"
	"net"
	"sort"
	"strconv"
	"sync"
)

// form says how the lines of the text are to leave.
type form int

const (
	plain   form = iota // as archived, and as BDAT carries it
	stuffed             // a dot doubled at the start of a line, as DATA carries it
)

// textSize is much more than processors cache, and more than the window of a
// fast compressor: a large mail that runs through it twice does not look
// repetitive.
const textSize = 8 << 20

// text is the one text that all bodies are cut from. It is made at the first
// use, never changed, and the same in every process.
var text = sync.OnceValue(func() *pool {
	p := &pool{}
	p.write(rand.New(rand.NewPCG(1, 2)))
	return p
})

// pool is a text of many lines in both forms. It is read as a ring: after the
// last line comes the first.
type pool struct {
	bytes [2][]byte // by form
	start [2][]int  // by form: where each line begins, and the end of the last one
}

func (p *pool) lines() int { return len(p.start[plain]) - 1 }

// fit returns the length in the plain form of as many whole lines, from a given
// one on, as go into room bytes.
func (p *pool) fit(line, room int) int {
	if room <= 0 {
		return 0
	}
	start, whole := p.start[plain], len(p.bytes[plain])
	rounds := room / whole * whole
	room -= rounds
	if rest := whole - start[line]; room >= rest {
		return rounds + rest + start[lastAtMost(start, room-rest)]
	}
	return rounds + start[lastAtMost(start, start[line]+room)] - start[line]
}

// append adds the lines from a given one on, n bytes in the plain form, which
// must be a value that fit returned.
func (p *pool) append(to net.Buffers, line, n int, f form) net.Buffers {
	start := p.start[plain]
	for n > 0 {
		end := lastAtMost(start, start[line]+n)
		to = append(to, p.bytes[f][p.start[f][line]:p.start[f][end]])
		n -= start[end] - start[line]
		line = 0
	}
	return to
}

// lastAtMost is the index of the last element of a that is at most x.
func lastAtMost(a []int, x int) int {
	return sort.Search(len(a), func(i int) bool { return a[i] > x }) - 1
}

// addLine takes a line without its end.
func (p *pool) addLine(line []byte) {
	for f := range p.bytes {
		p.start[f] = append(p.start[f], len(p.bytes[f]))
		if form(f) == stuffed && len(line) > 0 && line[0] == '.' {
			p.bytes[f] = append(p.bytes[f], '.')
		}
		p.bytes[f] = append(p.bytes[f], line...)
		p.bytes[f] = append(p.bytes[f], '\r', '\n')
	}
}

// write fills the pool with sentences in lines of at most 76 columns, a
// paragraph now and then, and now and then a line of the kind that a careless
// reader of DATA takes for its end.
func (p *pool) write(r *rand.Rand) {
	const columns = 76
	traps := []string{".", "..", ". and so on", "...", ".profile"}
	var line, word []byte
	for inSentence := 0; len(p.bytes[plain]) < textSize; inSentence++ {
		word = appendWord(word[:0], r)
		if inSentence == 0 && word[0] >= 'a' {
			word[0] -= 'a' - 'A'
		}
		if r.IntN(11) == 0 && inSentence > 2 {
			word = append(word, '.')
			inSentence = -1
		} else if r.IntN(12) == 0 {
			word = append(word, ',')
		}
		if len(line)+1+len(word) > columns {
			p.addLine(line)
			line = line[:0]
			if r.IntN(97) == 0 {
				p.addLine([]byte(traps[r.IntN(len(traps))]))
			}
		}
		if len(line) > 0 {
			line = append(line, ' ')
		}
		line = append(line, word...)
		if inSentence < 0 && r.IntN(7) == 0 {
			p.addLine(line)
			p.addLine(nil)
			line = line[:0]
		}
	}
	for f := range p.bytes {
		p.start[f] = append(p.start[f], len(p.bytes[f]))
	}
}

// appendWord adds a word: the first ones of the list often, the last ones
// seldom, as in real text, some inflected, and here and there a number.
func appendWord(to []byte, r *rand.Rand) []byte {
	if r.IntN(17) == 0 {
		return strconv.AppendInt(to, r.Int64N(100_000), 10)
	}
	x := r.Float64()
	to = append(to, words[int(x*x*float64(len(words)))]...)
	switch r.IntN(12) {
	case 0:
		return append(to, 's')
	case 1:
		return append(to, "ing"...)
	case 2:
		return append(to, "ed"...)
	}
	return to
}
