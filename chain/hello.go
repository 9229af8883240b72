package chain

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"chainmail/archive/record"
	"chainmail/membership/ring"
)

// hello is what two nodes tell each other: the asker in the body of the
// transaction, the other one in its reply. Fields that are not known are
// ignored, so that later versions may add some.
type hello struct {
	Cluster    string     `json:"cluster"`
	Node       string     `json:"node"`
	Version    string     `json:"version"`  // of the program
	Protocol   int        `json:"protocol"` // of the link: the version both speak
	Epoch      ring.Epoch `json:"epoch"`
	Boot       string     `json:"boot"`       // random for each life of the process
	Generation uint64     `json:"generation"` // numbers the looks at the holdings
	Logs       []told     `json:"logs"`
	Refuses    string     `json:"refuses,omitempty"` // why no receipts are taken at present
	MaxMessage int64      `json:"max_message,omitempty"`
	Time       time.Time  `json:"time"`

	// Only in the question: answer not before the holdings change, or this time
	// has passed.
	Wait  int64 `json:"wait_ms,omitempty"`
	Eager bool  `json:"eager,omitempty"` // false: not before the time has passed
}

// told is what a node says of a log: what it holds, and the highest number it
// has ever heard of.
type told struct {
	record.Log
	Known record.Seq `json:"known,omitempty"`
}

const (
	maxHello = 8 << 20
	maxWait  = 10 * time.Second
)

// parseHello reads a hello and checks what decisions are built on.
func parseHello(text []byte) (h hello, err error) {
	if err := json.Unmarshal(text, &h); err != nil {
		return h, fmt.Errorf("hello: %w", err)
	}
	switch {
	case h.Node == "" || h.Boot == "" || h.Generation == 0:
		return h, errors.New("hello: node, boot or generation is missing")
	case h.Wait < 0:
		return h, fmt.Errorf("hello: wait_ms is %d", h.Wait)
	}
	for _, l := range h.Logs {
		if err := checkLog(l.Log); err != nil {
			return h, fmt.Errorf("hello: %w", err)
		}
		if l.Known > maxSeq {
			return h, fmt.Errorf("hello: log %v: number %v is beyond any log", l.Store, l.Known)
		}
	}
	return h, nil
}

// held are the logs as a belief keeps them.
func (h hello) held() []record.Log {
	logs := make([]record.Log, len(h.Logs))
	for i, l := range h.Logs {
		logs[i] = l.Log
	}
	return logs
}

// introduce is this node's hello of now.
func (c *Chain) introduce(protocol int) hello {
	h := hello{
		Cluster: c.opts.Cluster, Node: c.opts.Name, Version: c.opts.Version, Protocol: protocol,
		Boot: c.boot, MaxMessage: c.opts.MaxMessage, Time: time.Now().UTC(),
	}
	if err := c.opts.Archive.Accepting(); err != nil {
		h.Refuses = err.Error()
	}
	var logs []record.Log
	h.Generation = c.look(func() { logs = c.opts.Archive.Logs() })
	c.mu.Lock()
	defer c.mu.Unlock()
	h.Epoch = c.view.Epoch
	for _, l := range logs {
		h.Logs = append(h.Logs, told{l, c.heard[l.Store]})
	}
	return h
}

// encode gives the lines of the reply that a hello is: JSON, cut anywhere.
func (h hello) encode() ([]byte, error) {
	text, err := json.Marshal(h)
	if err == nil && len(text) > maxHello {
		err = fmt.Errorf("what this node holds takes %d bytes to tell, more than %d", len(text), maxHello)
	}
	return text, err
}

// durable is the reply to a container: what of it, and between its parts, the
// receiver has on disk.
//
//	250-2.0.0 durable generation=812 boot=5f0c…
//	250-4f2a9c1be0d37786 1-1000,1005
//	250 77aa21349be01bcd 17
type durable struct {
	boot       string
	generation uint64
	held       map[record.StoreID]record.Ranges
}

const durableLine = "2.0.0 durable generation=%d boot=%s"

func (d durable) reply() reply {
	r := says(250, durableLine, d.generation, d.boot)
	stores := make([]record.StoreID, 0, len(d.held))
	for s := range d.held {
		stores = append(stores, s)
	}
	slices.Sort(stores)
	for _, s := range stores {
		line := s.String() + " "
		for i, x := range d.held[s] {
			part := x.String()
			switch {
			case len(line)+1+len(part) > textPerLine:
				r.lines = append(r.lines, line)
				line = s.String() + " "
			case i > 0:
				line += ","
			}
			line += part
		}
		r.lines = append(r.lines, line)
	}
	return r
}

// parseDurable reads what reply made. More words in its first line, and more
// words after the ranges, may come with later versions.
func parseDurable(r reply) (d durable, err error) {
	if _, err := fmt.Sscanf(r.lines[0], durableLine, &d.generation, &d.boot); err != nil {
		return d, fmt.Errorf("reply %.80q to a container: %w", r.lines[0], err)
	}
	d.held = map[record.StoreID]record.Ranges{}
	for _, line := range r.lines[1:] {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		store, err := record.ParseStoreID(words[0])
		if err != nil {
			return d, fmt.Errorf("reply to a container: %w", err)
		}
		var held record.Ranges
		if len(words) > 1 {
			if held, err = record.ParseRanges(words[1]); err != nil {
				return d, fmt.Errorf("reply to a container: %w", err)
			}
		}
		d.held[store] = d.held[store].Union(held)
	}
	return d, nil
}
