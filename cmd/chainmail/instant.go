package main

import (
	"errors"
	"time"

	"chainmail/node"
)

// instant is a flag that takes a point in time: RFC 3339, a date, or how long
// ago.
type instant struct {
	time.Time
	now func() time.Time
}

// String, Set and Type make it a pflag.Value.
func (i *instant) String() string { return i.rfc3339() }

func (i *instant) rfc3339() string {
	if i.IsZero() {
		return ""
	}
	return i.UTC().Format(time.RFC3339Nano)
}

var errInstant = errors.New("write 2026-01-31, 2026-01-31T08:00:00Z, or how long ago: 90m, 12h, 7d")

// Set reads the forms of a point in time.
func (i *instant) Set(s string) error {
	if t, ok := parseTime(s); ok {
		i.Time = t
		return nil
	}
	var ago node.Duration
	if ago.UnmarshalText([]byte(s)) != nil {
		return errInstant
	}
	i.Time = i.now().Add(-time.Duration(ago))
	return nil
}

// Type names the value in the help.
func (i *instant) Type() string { return "TIME" }

// parseTime reads RFC 3339, and dates and times of the operator's own zone.
func parseTime(s string) (time.Time, bool) {
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02T15:04", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

// parseExpiry reads a point in time, or how long from now; empty means never.
func parseExpiry(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if t, ok := parseTime(s); ok {
		return t, nil
	}
	var in node.Duration
	if in.UnmarshalText([]byte(s)) != nil {
		return time.Time{}, errors.New("--expires is " + s + ": write 90d, 2027-01-31 or 2027-01-31T08:00:00Z")
	}
	return now.Add(time.Duration(in)), nil
}
