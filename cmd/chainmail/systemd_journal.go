package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"
)

// journalPrefixes are how a line on standard error tells the journal its
// priority: see sd-daemon(3).
var journalPrefixes = []struct {
	from   slog.Level
	prefix string
}{
	{slog.LevelError, "<3>"},
	{slog.LevelWarn, "<4>"},
	{slog.LevelInfo, "<6>"},
	{slog.LevelDebug, "<7>"},
}

// journalHandler writes each record with the priority of its level.
type journalHandler struct {
	slog.Handler                // of one level, for what does not depend on it
	levels       []slog.Handler // by journalPrefixes
}

// toJournal reports whether standard error is the journal.
func toJournal() bool {
	var device, inode uint64
	if _, err := fmt.Sscanf(os.Getenv("JOURNAL_STREAM"), "%d:%d", &device, &inode); err != nil {
		return false
	}
	var is unix.Stat_t
	return unix.Fstat(int(os.Stderr.Fd()), &is) == nil && is.Dev == device && is.Ino == inode
}

// newJournalHandler makes a handler by which journalctl -p finds what matters.
func newJournalHandler(w io.Writer, form func(io.Writer) slog.Handler) slog.Handler {
	var levels []slog.Handler
	for _, p := range journalPrefixes {
		levels = append(levels, form(prefixed{w, p.prefix}))
	}
	return journalHandler{levels[0], levels}
}

func (h journalHandler) Handle(ctx context.Context, r slog.Record) error {
	for i, p := range journalPrefixes {
		if r.Level >= p.from {
			return h.levels[i].Handle(ctx, r)
		}
	}
	return h.levels[len(h.levels)-1].Handle(ctx, r)
}

func (h journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.each(func(one slog.Handler) slog.Handler { return one.WithAttrs(attrs) })
}

func (h journalHandler) WithGroup(name string) slog.Handler {
	return h.each(func(one slog.Handler) slog.Handler { return one.WithGroup(name) })
}

func (h journalHandler) each(change func(slog.Handler) slog.Handler) slog.Handler {
	levels := make([]slog.Handler, len(h.levels))
	for i, one := range h.levels {
		levels[i] = change(one)
	}
	return journalHandler{levels[0], levels}
}

// prefixed writes each line, which comes in one piece, after a prefix.
type prefixed struct {
	w      io.Writer
	prefix string
}

func (p prefixed) Write(line []byte) (int, error) {
	if _, err := p.w.Write(append([]byte(p.prefix), line...)); err != nil {
		return 0, err
	}
	return len(line), nil
}
