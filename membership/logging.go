package membership

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// Raft and memberlist say every few hundred milliseconds that a dead peer does
// not answer. Their messages come through at most once in repeatAfter, and
// what is routine to them is debug to us.
const repeatAfter = time.Minute

// libraryLog passes a library's messages on to slog.
type libraryLog struct {
	log     *slog.Logger
	library string

	mu   sync.Mutex
	said map[string]time.Time // message → when it last came through
}

func newLibraryLog(l *slog.Logger, library string) *libraryLog {
	return &libraryLog{log: l, library: library, said: map[string]time.Time{}}
}

// event logs a message of the library. key is what makes it a repetition.
func (l *libraryLog) event(level slog.Level, key, text string, attrs ...slog.Attr) {
	if level > slog.LevelDebug && l.repeated(key) {
		level = slog.LevelDebug
	}
	ctx := context.Background()
	if l.log.Enabled(ctx, level) {
		l.log.LogAttrs(ctx, level, "message of a library", append([]slog.Attr{slog.String("library", l.library), slog.String("event", text)}, attrs...)...)
	}
}

func (l *libraryLog) repeated(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if at, ok := l.said[key]; ok && now.Sub(at) < repeatAfter {
		return true
	}
	if len(l.said) > 1000 {
		clear(l.said)
	}
	l.said[key] = now
	return false
}

// gossipWriter takes memberlist's lines: "[WARN] memberlist: text: details".
type gossipWriter struct{ *libraryLog }

func (w gossipWriter) Write(b []byte) (int, error) {
	level, text := splitLine(string(bytes.TrimSpace(b)))
	key, _, _ := strings.Cut(text, ":")
	w.event(level, key, text)
	return len(b), nil
}

// splitLine finds the level that a line of memberlist deserves. That a peer
// does not answer is its daily bread, and shows in the liveness anyway.
func splitLine(line string) (slog.Level, string) {
	level := slog.LevelDebug
	tag, text, ok := strings.Cut(line, "] ")
	if !ok {
		return level, line
	}
	text = strings.TrimPrefix(text, "memberlist: ")
	routine := false
	for _, s := range []string{"Failed to send", "Failed fallback", "Push/Pull with", "Was able to connect", "Refuting", "ignoring alive message", "failed to read", "Failed to receive: EOF"} {
		routine = routine || strings.HasPrefix(text, s)
	}
	if !routine {
		switch strings.TrimPrefix(tag, "[") {
		case "ERR", "ERROR", "WARN":
			level = slog.LevelWarn
		}
	}
	return level, text
}

// raftLog is an hclog.Logger.
type raftLog struct {
	*libraryLog
	name  string
	with  []any
	alive func(id string) bool // of a peer; nil: not known
}

// raftRoutine begins the messages with which Raft warns of what happens at every
// join, stop, restart and change of the leader, and mends itself.
var raftRoutine = []string{
	"failed to get previous log",
	"appendEntries rejected, sending older logs",
	"not part of stable configuration",
	"heartbeat timeout reached",
	"rejecting vote request",
	"rejecting pre-vote request",
	"peer has newer term",
}

// level is what a message of Raft deserves: debug if it is routine, or about a
// peer that is not alive, which its liveness tells.
func (r raftLog) level(level hclog.Level, msg string, args []any) slog.Level {
	if level < hclog.Warn { // INFO tells of Raft's states, which we log ourselves
		return slog.LevelDebug
	}
	for _, s := range raftRoutine {
		if strings.HasPrefix(msg, s) {
			return slog.LevelDebug
		}
	}
	for _, v := range args {
		if err, ok := v.(error); ok && routineError(err) {
			return slog.LevelDebug
		}
		if id := peerID(v); id != "" && r.alive != nil && !r.alive(id) {
			return slog.LevelDebug
		}
	}
	return slog.LevelWarn
}

// routineError reports whether an error only says that the peer ended a
// connection, that it refuses this node's certificate, which runStanding looks
// into, or that a newcomer needs entries that are in the snapshot.
func routineError(err error) bool {
	for _, r := range []error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, syscall.ECONNRESET, syscall.EPIPE, raft.ErrLogNotFound} {
		if errors.Is(err, r) {
			return true
		}
	}
	return isRefusal(err)
}

// peerID is the ID of the member that a value of a message names, if it does.
// Our Raft addresses are IDs.
func peerID(v any) string {
	switch v := v.(type) {
	case raft.Server:
		return string(v.ID)
	case raft.ServerID:
		return string(v)
	case raft.ServerAddress:
		return string(v)
	}
	return ""
}

// Log and the methods after it are those of hclog.Logger.
func (r raftLog) Log(level hclog.Level, msg string, args ...any) {
	args = append(append([]any{}, r.with...), args...)
	var attrs []slog.Attr
	key := msg
	for i := 0; i+1 < len(args); i += 2 {
		k, v := fmt.Sprint(args[i]), args[i+1]
		if f, ok := v.(hclog.Format); ok && len(f) > 0 {
			v = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
		if k == "peer" {
			key += fmt.Sprint(v)
		}
		attrs = append(attrs, slog.String(k, fmt.Sprint(v)))
	}
	r.event(r.level(level, msg, args), key, msg, attrs...)
}

func (r raftLog) Trace(msg string, args ...any) { r.Log(hclog.Trace, msg, args...) }
func (r raftLog) Debug(msg string, args ...any) { r.Log(hclog.Debug, msg, args...) }
func (r raftLog) Info(msg string, args ...any)  { r.Log(hclog.Info, msg, args...) }
func (r raftLog) Warn(msg string, args ...any)  { r.Log(hclog.Warn, msg, args...) }
func (r raftLog) Error(msg string, args ...any) { r.Log(hclog.Error, msg, args...) }

func (r raftLog) IsTrace() bool { return false }
func (r raftLog) IsDebug() bool { return r.log.Enabled(context.Background(), slog.LevelDebug) }
func (r raftLog) IsInfo() bool  { return r.IsDebug() }
func (r raftLog) IsWarn() bool  { return true }
func (r raftLog) IsError() bool { return true }

func (r raftLog) ImpliedArgs() []any { return r.with }

func (r raftLog) With(args ...any) hclog.Logger {
	r.with = append(append([]any{}, r.with...), args...)
	return r
}

func (r raftLog) Name() string { return r.name }

func (r raftLog) Named(name string) hclog.Logger {
	r.name = strings.TrimPrefix(r.name+"."+name, ".")
	return r
}

func (r raftLog) ResetNamed(name string) hclog.Logger {
	r.name = name
	return r
}

func (r raftLog) SetLevel(hclog.Level) {}

func (r raftLog) GetLevel() hclog.Level { return hclog.Debug }

func (r raftLog) StandardLogger(o *hclog.StandardLoggerOptions) *log.Logger {
	return log.New(r.StandardWriter(o), "", 0)
}

func (r raftLog) StandardWriter(*hclog.StandardLoggerOptions) io.Writer {
	return gossipWriter{r.libraryLog}
}
