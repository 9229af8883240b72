package chain

import (
	"errors"
	"io"
	"log/slog"
	"strings"
	"time"

	"chainmail/archive/record"
)

// hello takes a peer's hello. Its reply is this node's, now or later.
func (s *server) hello(body *bodyReader) func() reply {
	text, err := io.ReadAll(io.LimitReader(body, maxHello+1))
	if err != nil {
		return always(451, "4.5.0 %v", err)
	}
	if len(text) > maxHello {
		return always(554, "5.5.2 hello: more than %d bytes", maxHello)
	}
	h, err := parseHello(text)
	if err != nil {
		return always(554, "5.5.2 %v", err)
	}
	c := s.c
	switch {
	case h.Cluster != c.opts.Cluster:
		return always(554, "5.7.1 this node, %s, is of cluster %s and you are of cluster %.64s", c.opts.Name, c.opts.Cluster, h.Cluster)
	case h.Node != s.peer:
		return always(554, "5.7.1 the certificate is that of %s, hello says %.64s", s.peer, h.Node)
	case h.Protocol < oldestProtocol || h.Protocol > newestProtocol:
		return always(554, "5.5.4 this node speaks versions %d to %d of the link, not %d", oldestProtocol, newestProtocol, h.Protocol)
	}
	s.known = true
	c.learn(s.peer, h, false)
	return func() reply {
		s.await(h)
		// The next one waits for what changes from here on.
		s.changed, s.told = c.opts.Archive.Changed(), time.Now()
		text, err := c.introduce(h.Protocol).encode()
		if err != nil {
			return says(451, "4.3.0 %v", err)
		}
		return reply{250, fold(string(text))}
	}
}

// await waits as long as a hello asks for.
func (s *server) await(h hello) {
	if h.Wait == 0 {
		return
	}
	timer := time.NewTimer(min(time.Duration(h.Wait)*time.Millisecond, maxWait))
	defer timer.Stop()
	changed := s.changed
	if !h.Eager {
		changed = nil
	}
	select {
	case <-timer.C:
		return
	case <-changed:
	case <-s.ctx.Done():
		return
	}
	// Many changes that come together are told together.
	rest := time.NewTimer(eagerPause - min(time.Since(s.told), eagerPause))
	defer rest.Stop()
	select {
	case <-rest.C:
	case <-s.ctx.Done():
	}
}

func always(code int, format string, args ...any) func() reply {
	r := says(code, format, args...)
	return func() reply { return r }
}

// receive takes a container into the archive. The reply, when it is asked for,
// waits for the disk; meanwhile the next container may be read.
func (s *server) receive(body io.Reader) func() reply {
	c := s.c
	in := newIncoming(c.opts.Archive.NewIntake(s.ctx, s.peer), s.spare)
	before := s.taken
	s.taken = in.taken
	in.read(newContainerReader(body), before)
	return func() reply {
		<-in.taken
		if in.err == nil {
			defer in.intake.Discard()
			_, in.err = in.intake.Sync()
		}
		if in.err != nil {
			r := in.refusal(in.err)
			if r.code == 554 {
				s.log.Warn("a container of the peer is refused", slog.Any("err", in.err))
			}
			return r
		}
		c.metrics.received.WithLabelValues(s.peer).Add(float64(in.receipts))
		return c.durable(in.hulls).reply()
	}
}

// durable says what of these stretches this node has on disk.
func (c *Chain) durable(hulls map[record.StoreID]record.Range) durable {
	d := durable{boot: c.boot, held: map[record.StoreID]record.Ranges{}}
	d.generation = c.look(func() {
		for s, hull := range hulls {
			l, _ := c.opts.Archive.Log(s)
			d.held[s] = l.Held.Intersect(record.Ranges{hull})
		}
	})
	return d
}

// positionError is about one receipt.
type positionError struct {
	at  record.Position
	err error
}

func (e positionError) Error() string { return e.at.String() + " " + e.err.Error() }
func (e positionError) Unwrap() error { return e.err }

// about says which receipt an error is about, where it is about one.
func (in *incoming) about(err error, at record.Position) error {
	if errors.Is(err, ErrCorrupt) {
		return positionError{at, err}
	}
	return err
}

// refusal translates what went wrong. This is the only place that does.
func (in *incoming) refusal(err error) reply {
	text := strings.Map(printable, err.Error())
	text = text[:min(len(text), textPerLine-20)]
	switch {
	case errors.Is(err, errMalformed):
		return says(554, "5.5.2 %s", text)
	case errors.Is(err, ErrCorrupt):
		return says(554, "%s %s", codeDamaged, text)
	case errors.Is(err, ErrFull):
		return says(452, "4.3.1 %s", text)
	case errors.Is(err, errCutOff):
		return says(451, "4.5.0 %s", text)
	}
	return says(451, "4.3.0 %s", text)
}

// printable keeps a text within one line of ASCII.
func printable(r rune) rune {
	if r < ' ' || r > '~' {
		return '?'
	}
	return r
}

// damaged is the receipt because of which a container was refused, if it was
// because of one.
func (r reply) damaged() (at record.Position, ok bool) {
	words := strings.Fields(r.lines[0])
	if len(words) < 2 || words[0] != codeDamaged {
		return at, false
	}
	at, err := record.ParsePosition(words[1])
	return at, err == nil
}
