package route

import (
	"context"
	"io"
	"time"

	"chainmail/archive/record"
)

const idleTime = 10 * time.Second // that a connection is kept open for the next mail

// sender sends mails, one after the other. ctx ends its work, sending cuts its
// connection.
func (r *Route) sender(ctx, sending context.Context) {
	var c *client
	defer func() {
		if c != nil {
			c.quit()
		}
	}()
	for {
		m, ok := r.receive(ctx, c != nil)
		switch {
		case !ok:
			return
		case m != nil && !r.begin(m):
		case m != nil:
			c = r.deliver(sending, c, m)
		}
		if c != nil && (m == nil || c.broken || c.mails >= maxPerConnection) {
			c.quit()
			c = nil
		}
	}
}

// receive waits for a mail, with an open connection not for long: then there
// is none. ok is false at the end.
func (r *Route) receive(ctx context.Context, open bool) (m *mail, ok bool) {
	var idle <-chan time.Time
	if open {
		timer := time.NewTimer(idleTime)
		defer timer.Stop()
		idle = timer.C
	}
	select {
	case m := <-r.jobs:
		return m, true
	case <-idle:
		return nil, true
	case <-ctx.Done():
		return nil, false
	}
}

// deliver makes one attempt, by this connection or a new one, and gives back
// the connection.
func (r *Route) deliver(ctx context.Context, c *client, m *mail) *client {
	l, err := r.letter(m)
	if err != nil {
		r.finish(m, attempt{err: &unreadable{err}})
		return c
	}
	if len(l.to) == 0 {
		r.finish(m, attempt{result: result{refused: []refused{{"", "not sent: its receipt names no recipient: set a recipient for the route"}}}})
		return c
	}
	for {
		if c == nil {
			if c, err = connect(ctx, &r.opts); err != nil {
				r.finish(m, attempt{err: err, stopped: ctx.Err() != nil})
				return nil
			}
		}
		used := c.mails > 0
		result, err := c.send(l)
		if err != nil && used && !c.answered && ctx.Err() == nil {
			// The server had closed the connection since the last mail.
			c.close()
			c = nil
			continue
		}
		r.finish(m, attempt{result: result, err: err, begun: true, stopped: ctx.Err() != nil})
		return c
	}
}

// letter reads what is to be sent.
func (r *Route) letter(m *mail) (letter, error) {
	if m.receipt == nil {
		receipt, err := r.source.Receipt(m.at)
		if err != nil {
			return letter{}, err
		}
		m.receipt = &receipt
	}
	hash := m.receipt.Hash
	c, err := inspect(m.receipt.Size, func() (io.ReadCloser, error) { return r.source.Body(hash) })
	if err != nil {
		return letter{}, err
	}
	return letter{from: r.sendAs(m.receipt), to: r.recipients(m), content: c}, nil
}

func (r *Route) sendAs(receipt *record.Receipt) string {
	switch r.opts.Sender {
	case "":
		return receipt.Envelope.From
	case "<>":
		return ""
	}
	return r.opts.Sender
}

func (r *Route) recipients(m *mail) []string {
	switch {
	case m.to != nil:
		return m.to
	case r.opts.Recipient != "":
		return []string{r.opts.Recipient}
	}
	return m.receipt.Envelope.To
}
