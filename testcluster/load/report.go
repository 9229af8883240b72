package load

import (
	"fmt"
	"math/bits"
	"strings"
	"time"
)

// Report is the result of a run, and its JSON form.
type Report struct {
	Seed           uint64  `json:"seed"`
	Acked          int64   `json:"acked"`      // mails with a final 2xx
	Tempfailed     int64   `json:"tempfailed"` // answers of 4xx; the mail was offered again
	GivenUp        int64   `json:"given_up"`   // mails that got 4xx at every attempt
	Refused        int64   `json:"refused"`    // mails with a final 5xx
	Unanswered     int64   `json:"unanswered"` // mails whose connection broke before the answer: their fate is unknown
	Reconnects     int64   `json:"reconnects"`
	Bytes          int64   `json:"bytes"` // of acknowledged mails
	Seconds        float64 `json:"seconds"`
	MailsPerSecond float64 `json:"mails_per_second"`
	BytesPerSecond float64 `json:"bytes_per_second"`
	Latency        Latency `json:"latency_ms"`
	// LongestGap is the longest time in which no mail was acknowledged, in
	// milliseconds: how long the service was away, as far as this load could see.
	LongestGap float64 `json:"longest_gap_ms"`
	// Complaint is the first reply of 4xx or 5xx, word for word.
	Complaint string `json:"complaint,omitempty"`
}

// Latency is the time from the first byte of a mail's text (with BDAT, of its
// MAIL command) to its answer, in milliseconds, to within 2 percent.
type Latency struct {
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

func (r *run) report(sessions []*session) Report {
	report := Report{Seed: r.opt.Seed, Acked: r.acked.Load(), Bytes: r.bytes.Load()}
	var all histogram
	end := r.begun
	for _, s := range sessions {
		report.Tempfailed += s.tempfailed
		report.GivenUp += s.givenUp
		report.Refused += s.refused
		report.Unanswered += s.unanswered
		report.Reconnects += s.reconnects
		if report.Complaint == "" {
			report.Complaint = s.complaint
		}
		if s.lastReply.After(end) {
			end = s.lastReply
		}
		all.merge(&s.latency)
	}
	if report.Seconds = end.Sub(r.begun).Seconds(); report.Seconds > 0 {
		report.MailsPerSecond = float64(report.Acked) / report.Seconds
		report.BytesPerSecond = float64(report.Bytes) / report.Seconds
	}
	report.Latency = Latency{ms(all.quantile(0.50)), ms(all.quantile(0.90)), ms(all.quantile(0.99)), ms(all.max)}
	report.LongestGap = ms(time.Duration(r.longest.Load()))
	return report
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// String is the report for people, several lines.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "acknowledged  %d mails, %.1f MiB in %.2f s: %.0f mails/s, %.1f MiB/s\n",
		r.Acked, float64(r.Bytes)/(1<<20), r.Seconds, r.MailsPerSecond, r.BytesPerSecond/(1<<20))
	fmt.Fprintf(&b, "latency       p50 %.2f ms, p90 %.2f ms, p99 %.2f ms, max %.2f ms\n",
		r.Latency.P50, r.Latency.P90, r.Latency.P99, r.Latency.Max)
	fmt.Fprintf(&b, "longest gap   %.0f ms without an acknowledged mail\n", r.LongestGap)
	for _, line := range []struct {
		n    int64
		text string
	}{
		{r.Tempfailed, "answers of 4xx, the mail was offered again"},
		{r.GivenUp, "mails given up after 4xx at every attempt"},
		{r.Refused, "mails refused with 5xx"},
		{r.Unanswered, "mails without an answer: the connection broke, their fate is unknown"},
		{r.Reconnects, "connections lost or closed by the server"},
	} {
		if line.n > 0 {
			fmt.Fprintf(&b, "%-13d %s\n", line.n, line.text)
		}
	}
	if r.Complaint != "" {
		fmt.Fprintf(&b, "first refusal %s\n", r.Complaint)
	}
	return b.String()
}

// histogram counts durations in buckets of which each is at most 1/32 wider
// than the one below: 32 to an octave of nanoseconds.
type histogram struct {
	n       int64
	max     time.Duration
	buckets [64 * subBuckets]int64
}

const (
	subBits    = 5
	subBuckets = 1 << subBits
)

func (h *histogram) add(d time.Duration) {
	h.n++
	h.max = max(h.max, d)
	h.buckets[bucket(uint64(max(d, 0)))]++
}

func bucket(v uint64) int {
	if v < subBuckets {
		return int(v)
	}
	shift := bits.Len64(v) - subBits - 1
	return shift<<subBits + int(v>>shift)
}

// middle is the inverse of bucket: the middle of its range.
func middle(i int) time.Duration {
	if i < 2*subBuckets {
		return time.Duration(i)
	}
	shift := i>>subBits - 1
	low := uint64(i-shift<<subBits) << shift
	return time.Duration(low + 1<<shift/2)
}

func (h *histogram) merge(o *histogram) {
	h.n += o.n
	h.max = max(h.max, o.max)
	for i, n := range o.buckets {
		h.buckets[i] += n
	}
}

func (h *histogram) quantile(q float64) time.Duration {
	rank := int64(q * float64(h.n))
	for i, n := range h.buckets {
		if rank -= n; rank < 0 {
			return min(middle(i), h.max)
		}
	}
	return h.max
}
