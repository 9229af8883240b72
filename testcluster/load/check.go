package load

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"chainmail/archive/record"
	"chainmail/node/client"
)

// Archive is where acknowledged mail is read back from.
type Archive interface {
	// Receipts returns how many receipts a message has, by its SHA-256 in
	// hexadecimal digits; 0 without an error means that the message is not
	// there.
	Receipts(ctx context.Context, sha256 string) (int, error)
	// Raw gives the exact bytes of a message.
	Raw(ctx context.Context, sha256 string) (io.ReadCloser, error)
}

// CheckOptions say how to check. Zero values mean the defaults given.
type CheckOptions struct {
	Workers int // messages read at a time; 8
	// Progress, unless nil, is called after each message with how many of
	// how many were checked; never by two goroutines at a time.
	Progress func(checked, total int)
}

// CheckReport is the result of a check, and its JSON form. The lists hold
// SHA-256 sums in ascending order. The first three are losses.
type CheckReport struct {
	Acked      int      `json:"acked"`      // acknowledgements on the list
	Checked    int      `json:"checked"`    // different messages among them
	Bytes      int64    `json:"bytes"`      // read back
	Missing    []string `json:"missing"`    // fewer receipts than acknowledgements
	Altered    []string `json:"altered"`    // other bytes came back
	Unreadable []string `json:"unreadable"` // a receipt is there, its text could not be read to the end
	Duplicated []string `json:"duplicated"` // more receipts than acknowledgements
	Seconds    float64  `json:"seconds"`
	// Reason is the error of one unreadable message.
	Reason string `json:"reason,omitempty"`
}

// OK reports whether every acknowledged message is there, whole, and as often
// as it was acknowledged.
func (r CheckReport) OK() bool {
	return len(r.Missing)+len(r.Altered)+len(r.Unreadable)+len(r.Duplicated) == 0
}

// Check reads back every message of a list that Run wrote, which may be the
// lists of several runs together, and whose last line may be torn. The error is
// for a list that cannot be read and an archive that cannot be asked; what is
// wrong with the messages is in the report.
func Check(ctx context.Context, list io.Reader, archive Archive, opt CheckOptions) (CheckReport, error) {
	setDefault(&opt.Workers, 8)
	begun := time.Now()
	acked, lines, err := readList(list)
	if err != nil {
		return CheckReport{}, err
	}
	c := &checker{archive: archive, opt: opt, acked: acked}
	c.report = CheckReport{Acked: lines, Missing: []string{}, Altered: []string{}, Unreadable: []string{}, Duplicated: []string{}}
	err = c.run(ctx)
	for _, found := range [][]string{c.report.Missing, c.report.Altered, c.report.Unreadable, c.report.Duplicated} {
		slices.Sort(found)
	}
	c.report.Seconds = time.Since(begun).Seconds()
	return c.report, err
}

// readList counts how often each hash was acknowledged.
func readList(list io.Reader) (acked map[record.Hash]int, lines int, err error) {
	acked = map[record.Hash]int{}
	r := bufio.NewReader(list)
	for {
		line, err := r.ReadString('\n')
		if err == io.EOF {
			return acked, lines, nil // a last line without its end was torn by a crash: not acknowledged to anybody
		}
		if err != nil {
			return nil, 0, fmt.Errorf("cannot read the list of acknowledged mail: %w", err)
		}
		lines++
		h, err := record.ParseHash(strings.TrimRight(line, "\r\n"))
		if err != nil {
			return nil, 0, fmt.Errorf("line %d of the list of acknowledged mail: %w", lines, err)
		}
		acked[h]++
	}
}

type checker struct {
	archive Archive
	opt     CheckOptions
	acked   map[record.Hash]int

	mu     sync.Mutex
	report CheckReport
}

func (c *checker) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan record.Hash)
	var wg sync.WaitGroup
	for range c.opt.Workers {
		wg.Go(func() {
			for h := range work {
				if err := c.check(ctx, h); err != nil {
					cancel(err)
				}
			}
		})
	}
	for h := range c.acked {
		select {
		case work <- h:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(work)
	wg.Wait()
	return context.Cause(ctx)
}

// check looks at one message. Its error ends the whole check.
func (c *checker) check(ctx context.Context, h record.Hash) error {
	id := h.String()
	receipts, err := c.archive.Receipts(ctx, id)
	if err != nil {
		return fmt.Errorf("cannot ask the archive for %s: %w", id, err)
	}
	var n int64
	altered, unreadable := false, error(nil)
	if receipts > 0 {
		n, altered, unreadable = c.read(ctx, id)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	r := &c.report
	r.Checked++
	r.Bytes += n
	switch {
	case receipts < c.acked[h]:
		r.Missing = append(r.Missing, id)
	case receipts > c.acked[h]:
		r.Duplicated = append(r.Duplicated, id)
	}
	if altered {
		r.Altered = append(r.Altered, id)
	}
	if unreadable != nil {
		r.Unreadable = append(r.Unreadable, id)
		r.Reason = unreadable.Error()
	}
	if c.opt.Progress != nil {
		c.opt.Progress(r.Checked, len(c.acked))
	}
	return nil
}

// read reports the length of a message and whether its bytes are other ones
// than its name says.
func (c *checker) read(ctx context.Context, id string) (n int64, altered bool, err error) {
	body, err := c.archive.Raw(ctx, id)
	if err != nil {
		return 0, false, err
	}
	sum := sha256.New()
	n, err = io.Copy(sum, body)
	if errors.Is(err, client.ErrAltered) { // the client saw it before us
		_ = body.Close()
		return n, true, nil
	}
	if err = errors.Join(err, body.Close()); err != nil {
		return n, false, err
	}
	return n, hex.EncodeToString(sum.Sum(nil)) != id, nil
}

// maxShown is how many messages of a kind a report names for people.
const maxShown = 20

// String is the report for people, several lines.
func (r CheckReport) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "checked       %d messages, %.1f MiB in %.1f s\n", r.Checked, float64(r.Bytes)/(1<<20), r.Seconds)
	switch {
	case r.Acked == 0:
		b.WriteString("result        nothing was proved: the list holds no acknowledged mail\n")
	case r.OK():
		b.WriteString("result        every acknowledged message is there, whole, and once\n")
	}
	for _, found := range []struct {
		name string
		ids  []string
	}{{"missing", r.Missing}, {"altered", r.Altered}, {"unreadable", r.Unreadable}, {"duplicated", r.Duplicated}} {
		if len(found.ids) > 0 {
			fmt.Fprintf(&b, "%-13s %d\n", found.name, len(found.ids))
		}
		shown := found.ids[:min(len(found.ids), maxShown)]
		for _, id := range shown {
			fmt.Fprintf(&b, "  %s\n", id)
		}
		if more := len(found.ids) - len(shown); more > 0 {
			fmt.Fprintf(&b, "  and %d more; -o json names all\n", more)
		}
	}
	if r.Reason != "" {
		fmt.Fprintf(&b, "reason        %s\n", r.Reason)
	}
	return b.String()
}
