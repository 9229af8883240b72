package membership

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/raft"

	"chainmail/membership/ring"
)

// TestMetaHasRoom: however long the addresses are, the meta is no longer than
// the limit, and gives up those last that an election needs.
func TestMetaHasRoom(t *testing.T) {
	for _, tt := range []struct {
		host int // bytes
		want string
	}{
		{9, "smtp chain gossip raft http"},
		{60, "smtp chain gossip raft http"},
		{90, "chain gossip raft"},
		{140, "gossip raft"},
		{253, "raft"},
		{600, ""},
	} {
		addr := strings.Repeat("h", tt.host) + ":65535"
		meta := gossipMeta{
			ID: strings.Repeat("f", 32), Role: ring.Witness, Version: strings.Repeat("1", 40), Epoch: 1 << 40,
			Addresses: ring.Addresses{SMTP: addr, Chain: addr, Gossip: addr, Raft: addr, HTTP: addr},
		}
		b := encodeMeta(meta, memberlist.MetaMaxSize)
		got, err := decodeMetaOf(&memberlist.Node{Meta: b})
		if err != nil || len(b) > memberlist.MetaMaxSize || got.ID != meta.ID || got.Epoch != meta.Epoch {
			t.Errorf("%d: %d bytes, %+v, %v", tt.host, len(b), got, err)
		}
		var there []string
		said := overlay(ring.Addresses{}, got.Addresses)
		for _, a := range [][2]string{{"smtp", said.SMTP}, {"chain", said.Chain}, {"gossip", said.Gossip}, {"raft", said.Raft}, {"http", said.HTTP}} {
			if a[1] != "" {
				there = append(there, a[0])
			}
		}
		if s := strings.Join(there, " "); s != tt.want {
			t.Errorf("%d: has room for %q, want %q", tt.host, s, tt.want)
		}
	}
	if b := encodeMeta(gossipMeta{ID: "1", Version: strings.Repeat("1", 1000)}, memberlist.MetaMaxSize); len(b) == 0 {
		t.Error("a long version leaves no meta")
	}
}

// TestOverlay: what is no address does not take the place of one.
func TestOverlay(t *testing.T) {
	view := ring.Addresses{Gossip: "a:1", Raft: "a:2", HTTP: "a:3"}
	if got := overlay(view, ring.Addresses{SMTP: "25", Gossip: ":1", Raft: "b:", HTTP: "[::1]:9"}); got != (ring.Addresses{Gossip: "a:1", Raft: "a:2", HTTP: "[::1]:9"}) {
		t.Errorf("%+v", got)
	}
}

// TestRaftLevel: what mends itself is debug, what does not is a warning.
func TestRaftLevel(t *testing.T) {
	r := raftLog{alive: func(id string) bool { return id == "here" }}
	here, gone := raft.Server{ID: "here"}, raft.Server{ID: "gone"}
	refused := errors.New("dial tcp: connection refused")
	for _, tt := range []struct {
		level hclog.Level
		text  string
		args  []any
		want  slog.Level
	}{
		{hclog.Info, "entering leader state", nil, slog.LevelDebug},
		{hclog.Warn, "failed to get previous log", []any{"error", raft.ErrLogNotFound}, slog.LevelDebug},
		{hclog.Warn, "not part of stable configuration, aborting election", nil, slog.LevelDebug},
		{hclog.Error, "failed to appendEntries to", []any{"peer", here, "error", io.EOF}, slog.LevelDebug},
		{hclog.Error, "failed to appendEntries to", []any{"peer", here, "error", fmt.Errorf("msgpack: %w", io.EOF)}, slog.LevelDebug},
		{hclog.Error, "failed to appendEntries to", []any{"peer", gone, "error", refused}, slog.LevelDebug},
		{hclog.Error, "failed to heartbeat to", []any{"peer", raft.ServerAddress("gone"), "error", refused}, slog.LevelDebug},
		{hclog.Warn, "failed to contact", []any{"server-id", raft.ServerID("gone")}, slog.LevelDebug},
		{hclog.Error, "failed to appendEntries to", []any{"peer", here, "error", refused}, slog.LevelWarn},
		{hclog.Error, "failed to heartbeat to", []any{"peer", raft.ServerAddress("here"), "error", refused}, slog.LevelWarn},
		{hclog.Error, "failed to get log", []any{"index", 1, "error", errors.New("input/output error")}, slog.LevelWarn},
		{hclog.Error, "failed to take snapshot", []any{"error", errors.New("no space left on device")}, slog.LevelWarn},
	} {
		if got := r.level(tt.level, tt.text, tt.args); got != tt.want {
			t.Errorf("%s %v: %v, want %v", tt.text, tt.args, got, tt.want)
		}
	}
}
