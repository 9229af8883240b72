package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"chainmail/archive/mailbox"
	"chainmail/node/api"
)

// Sink takes the exported messages, oldest first: a mailbox.Sink.
type Sink interface {
	// Has reports whether the message need not be fetched.
	Has(m mailbox.Meta) bool
	// Add writes one message. After an error from body it must leave the
	// message out, and take the next one.
	Add(m mailbox.Meta, body io.Reader) error
}

// Export gives every selected message to the sink. A message that does not
// arrive whole, with its SHA-256, is counted as failed, and the export goes on.
// The error is not nil when it could not go on: ctx ended, the node is gone, or
// the sink failed.
func (c *Client) Export(ctx context.Context, q Query, sink Sink, progress func(Summary)) (Summary, error) {
	run := tally{progress: progress}
	for m, err := range c.Messages(ctx, q) {
		if err != nil {
			return run.summary, err
		}
		meta := metadata(m)
		if sink.Has(meta) {
			run.count(m.SHA256, false, m.Size, nil)
			continue
		}
		damaged, err := c.exportOne(ctx, meta, sink)
		if err != nil {
			return run.summary, fmt.Errorf("the export stopped at message %s: %w", m.SHA256, err)
		}
		run.count(m.SHA256, true, m.Size, damaged)
	}
	return run.summary, nil
}

// exportOne tells apart why this message cannot be exported, and why none can.
func (c *Client) exportOne(ctx context.Context, meta mailbox.Meta, sink Sink) (damaged, stop error) {
	raw, err := c.Raw(ctx, meta.SHA256)
	if _, refused := errors.AsType[*Error](err); refused {
		return err, nil
	}
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	body := &observed{Reader: raw}
	switch err := sink.Add(meta, body); {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case body.err != nil:
		return body.err, nil
	case errors.Is(err, mailbox.ErrAltered):
		return err, nil
	default:
		return nil, err
	}
}

// observed remembers why its reader failed.
type observed struct {
	io.Reader
	err error
}

func (o *observed) Read(p []byte) (int, error) {
	n, err := o.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		o.err = err
	}
	return n, err
}

// metadata names the sender of the first receipt, and the recipients of all.
func metadata(m api.Message) mailbox.Meta {
	meta := mailbox.Meta{SHA256: m.SHA256, Size: m.Size, ReceivedAt: m.ReceivedAt}
	for i, r := range m.Receipts {
		if i == 0 {
			meta.From = r.From
		}
		for _, to := range r.To {
			if !slices.Contains(meta.To, to) {
				meta.To = append(meta.To, to)
			}
		}
	}
	return meta
}
