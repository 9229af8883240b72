package archive

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"chainmail/archive/record"
)

// One rotten bit in the table that has the small keys (m, l, o) would keep a
// node from starting, although nearly all its mail is well. So what they say
// is also in the file STORE beside the database, written at a start and a stop,
// when a log is started, and once an hour:
//
//	a line of JSON, then a line with its CRC-32C in 8 hexadecimal digits
//
// A node that has to start from it begins a new log. What came after the file
// was written is found missing by its peers, and given back.
type storeFile struct {
	Format int            `json:"format"`
	Store  record.StoreID `json:"store"`
	Logs   []storedLog    `json:"logs"`
}

type storedLog struct {
	record.Log
	Messages uint64 `json:"messages"`
	RawBytes uint64 `json:"raw_bytes"`
}

const (
	storeFileName   = "STORE"
	storeFilePeriod = time.Hour
)

func (a *Archive) writeStoreFile() error {
	a.storing.Lock()
	defer a.storing.Unlock()
	now, states := a.sight(), a.snapshot()
	f := storeFile{Format: formatVersion, Store: now.own}
	for _, s := range now.stores() {
		l := now.others[s]
		l.Held = now.held(s)
		f.Logs = append(f.Logs, storedLog{l, states[s].messages, states[s].rawBytes})
	}
	line := encodeJSON(f)
	text := fmt.Appendf(line, "\n%08x\n", crc32.Checksum(line, castagnoli))
	name := a.fs.PathJoin(a.opts.Dir, storeFileName)
	if err := writeFile(a.fs, name+".new", text); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := errors.Join(a.fs.Rename(name+".new", name), syncDir(a.fs, a.opts.Dir)); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func writeFile(fs vfs.FS, name string, text []byte) error {
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (a *Archive) readStoreFile() (f storeFile, err error) {
	file, err := a.fs.Open(a.fs.PathJoin(a.opts.Dir, storeFileName))
	if err != nil {
		return f, err
	}
	text, err := io.ReadAll(file)
	if err := errors.Join(err, file.Close()); err != nil {
		return f, err
	}
	line, sum, _ := bytes.Cut(text, []byte("\n"))
	if string(sum) != fmt.Sprintf("%08x\n", crc32.Checksum(line, castagnoli)) {
		return f, corrupt("%s has another checksum", storeFileName)
	}
	if err := json.Unmarshal(line, &f); err != nil {
		return f, corrupt("%s: %v", storeFileName, err)
	}
	if f.Format != formatVersion || f.Store == 0 {
		return f, corrupt("%s has format version %d, this program knows %d", storeFileName, f.Format, formatVersion)
	}
	return f, nil
}

// recoverMeta takes what damage hides in the database from the store file.
func (a *Archive) recoverMeta(damage error) error {
	f, err := a.readStoreFile()
	if err != nil {
		return errors.Join(damage, err)
	}
	a.log.Error("a part of the database that a start needs is damaged; the node starts from the copy in the file STORE: check the disk, then rebuild the node from its peers",
		"dir", a.opts.Dir, "err", damage)
	infos := map[record.StoreID]logInfo{}
	a.states = map[record.StoreID]logState{f.Store: {}}
	for _, l := range f.Logs {
		state := logState{messages: l.Messages, rawBytes: l.RawBytes}
		state.hold(l.Held)
		a.states[l.Store] = state
		infos[l.Store] = logInfo{l.Origin, l.Placements}
	}
	a.own.Store(&ownLog{store: f.Store})
	a.setLogs(infos)
	return nil
}

// recoverMark finds the end of the own log, which grew after the store file
// was written: by its last receipt, or where that cannot be read, by what was
// noted.
func (a *Archive) recoverMark(noted record.Position) {
	own := a.Store()
	last, err := a.lastReceipt(own)
	if err != nil && noted.Store == own {
		last = noted.Seq
	}
	state := a.states[own]
	state.hold(record.Of(1, last))
	a.states[own] = state
}

func (a *Archive) lastReceipt(s record.StoreID) (last record.Seq, err error) {
	prefix := u64(kindReceipt, uint64(s))
	it, err := a.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix)})
	if err != nil {
		return 0, err
	}
	if it.Last() {
		last = positionAt(it.Key()).Seq
	}
	return last, errors.Join(it.Error(), it.Close())
}
