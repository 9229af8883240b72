package chain

import (
	"time"

	"chainmail/archive/record"
)

// history remembers what a peer lacked of one log, second by second, for the
// standbys' sake. The zero value is empty.
type history struct {
	moments []moment // the oldest first
}

type moment struct {
	at    time.Time
	lacks record.Ranges
}

// note adds a moment and forgets what is older than keep, but for the one that
// still says how it was then.
func (h *history) note(at time.Time, lacks record.Ranges, keep time.Duration) {
	h.moments = append(h.moments, moment{at, lacks})
	for len(h.moments) > 1 && !h.moments[1].at.After(at.Add(-keep)) {
		h.moments = h.moments[1:]
	}
}

// at is what was lacking at a time; false when that is before the first
// moment, which then stands for it.
func (h *history) at(t time.Time) (record.Ranges, bool) {
	for i := len(h.moments) - 1; i >= 0; i-- {
		if m := h.moments[i]; !m.at.After(t) {
			return m.lacks, true
		}
	}
	if len(h.moments) == 0 {
		return nil, false
	}
	return h.moments[0].lacks, false
}
