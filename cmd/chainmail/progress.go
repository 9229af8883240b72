package main

import (
	"io"
	"time"

	"github.com/schollz/progressbar/v3"
)

// progress shows how far a long command is, on a terminal only. A nil progress
// shows nothing.
type progress struct {
	bar  *progressbar.ProgressBar
	verb string
}

// newProgress starts a bar of so many messages; 0 means that nobody knows.
func newProgress(w io.Writer, verb string, total uint64) *progress {
	return startProgress(w, verb, int64(total), progressbar.OptionShowIts(), progressbar.OptionSetItsString("mails"))
}

// newByteProgress starts a bar of so many bytes.
func newByteProgress(w io.Writer, verb string, total int64) *progress {
	return startProgress(w, verb, total, progressbar.OptionShowBytes(true))
}

func startProgress(w io.Writer, verb string, total int64, options ...progressbar.Option) *progress {
	if !isTerminal(w) {
		return nil
	}
	if total == 0 {
		total = -1
	}
	return &progress{verb: verb, bar: progressbar.NewOptions64(total, append(options,
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetDescription(verb),
		progressbar.OptionSetWidth(30),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionShowCount(),
		progressbar.OptionClearOnFinish(),
	)...)}
}

// set says how many messages are done, and their bytes. An error of drawing
// must not end the work.
func (p *progress) set(messages uint64, bytes int64) {
	if p == nil {
		return
	}
	p.bar.Describe(p.verb + " " + humanSize(bytes))
	_ = p.bar.Set64(int64(messages))
}

// setCount is set where bytes are of no interest.
func (p *progress) setCount(n uint64) {
	if p != nil {
		_ = p.bar.Set64(int64(n))
	}
}

// setBytes is set for a bar of bytes. The envelopes of an mbox are no part of
// its messages, so the end is reached a little early or late.
func (p *progress) setBytes(bytes int64, messages uint64) {
	if p == nil {
		return
	}
	p.bar.Describe(p.verb + " " + plural(messages, "mail"))
	if limit := p.bar.GetMax64(); limit > 0 {
		bytes = min(bytes, limit)
	}
	_ = p.bar.Set64(bytes)
}

func (p *progress) end() {
	if p != nil {
		_ = p.bar.Finish()
	}
}
