package archive

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// loudFS ends the process when a file cannot be written or synced, before the
// database learns of it. The database would panic in some of these places and
// try again in others; after a failed sync a second one may succeed although
// the data is lost.
type loudFS struct {
	vfs.FS
	fatal func(error)
}

func (l loudFS) loud(op, name string, err error) error {
	if err == nil {
		return nil
	}
	if _, told := errors.AsType[*os.PathError](err); !told {
		err = fmt.Errorf("%s %s: %w", op, name, err)
	}
	l.fatal(fmt.Errorf("%w: check the disk and its free space before the node is started again, then run 'chainmail verify'", err))
	return err
}

func (l loudFS) wrap(name string, f vfs.File, err error) (vfs.File, error) {
	if err := l.loud("create", name, err); err != nil {
		return nil, err
	}
	return loudFile{f, l, name}, nil
}

func (l loudFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := l.FS.Create(name, c)
	return l.wrap(name, f, err)
}

func (l loudFS) ReuseForWrite(old, name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := l.FS.ReuseForWrite(old, name, c)
	return l.wrap(name, f, err)
}

func (l loudFS) OpenDir(name string) (vfs.File, error) {
	f, err := l.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return loudFile{f, l, name}, nil
}

type loudFile struct {
	vfs.File
	fs   loudFS
	name string
}

func (f loudFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	return n, f.fs.loud("write", f.name, err)
}

// Close lets the kernel forget a blob file that was just written and synced.
// Mail is seldom read soon, and its pages would push out what is, or make a
// virtual machine's kernel find new ones for every mail.
func (f loudFile) Close() error {
	if strings.HasSuffix(f.name, ".blob") && f.Fd() != vfs.InvalidFd {
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // advice only
	}
	return f.File.Close()
}

func (f loudFile) Sync() error { return f.fs.loud("sync", f.name, f.File.Sync()) }

func (f loudFile) SyncData() error { return f.fs.loud("sync", f.name, f.File.SyncData()) }

func (f loudFile) SyncTo(n int64) (bool, error) {
	full, err := f.File.SyncTo(n)
	return full, f.fs.loud("sync", f.name, err)
}
