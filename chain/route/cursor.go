package route

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"chainmail/archive/record"
)

// cursor is what a route keeps on disk, as NAME.json:
//
//	{
//	  "version": 1,
//	  "since": "2026-11-23T10:00:00Z",
//	  "logs": [{"store": "4f2a9c1be0d37786", "settled": "1-1000,1005"}],
//	  "parked": [{"position": "4f2a9c1be0d37786:42", "reply": "550 …", …}]
//	}
//
// A position in parked is settled as well: whether it is sent again is decided
// there.
type cursor struct {
	Version int `json:"version"`
	// Since is when the route began with "now". Receipts of other nodes that
	// are older by a day are settled when this node comes to hold them: they
	// are history that is filled in.
	Since  time.Time   `json:"since,omitzero"`
	Logs   []logCursor `json:"logs"`
	Parked []Parked    `json:"parked,omitempty"`
}

type logCursor struct {
	Store   record.StoreID `json:"store"`
	Settled record.Ranges  `json:"settled"`
}

const (
	cursorVersion = 1
	// historyMargin is how far the clocks of two nodes may differ without a
	// mail being taken for history. Rather some history is sent.
	historyMargin = 24 * time.Hour
)

// loadCursor reads a cursor; found is false when there is none.
func loadCursor(file string) (c cursor, found bool, err error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return cursor{}, false, nil
	}
	if err != nil {
		return cursor{}, false, err
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return cursor{}, false, fmt.Errorf("%s is damaged: %w: put back a copy, or remove it to begin anew as \"from\" says", file, err)
	}
	if c.Version != cursorVersion {
		return cursor{}, false, fmt.Errorf("%s has version %d, this chainmail knows %d: use the chainmail that wrote it, or a newer one", file, c.Version, cursorVersion)
	}
	return c, true, nil
}

// newCursor is the one of a route that begins.
func newCursor(from From, logs []record.Log, now time.Time) cursor {
	c := cursor{Version: cursorVersion}
	if from == FromBeginning {
		return c
	}
	c.Since = now.UTC()
	for _, l := range logs {
		if last := l.Held.Last(); last > 0 {
			c.Logs = append(c.Logs, logCursor{l.Store, record.Of(1, last)})
		}
	}
	return c
}

// save writes the file so that after a power cut it is the old or the new one.
func (c *cursor) save(file string) error {
	slices.SortFunc(c.Parked, func(a, b Parked) int { return a.Position.Compare(b.Position) })
	text, err := json.MarshalIndent(c, "", " ")
	if err != nil {
		return err
	}
	dir := filepath.Dir(file)
	temp, err := os.CreateTemp(dir, filepath.Base(file)+".*.tmp")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name()) // after the rename there is nothing
	_, err = temp.Write(append(text, '\n'))
	if err = errors.Join(err, syncAndClose(temp)); err != nil {
		return err
	}
	if err := os.Rename(temp.Name(), file); err != nil {
		return err
	}
	parent, err := os.Open(dir)
	if err != nil {
		return err
	}
	return syncAndClose(parent)
}

func syncAndClose(f *os.File) error {
	return errors.Join(f.Sync(), f.Close())
}
