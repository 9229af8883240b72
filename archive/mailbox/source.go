package mailbox

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
)

// ErrSkipped is wrapped by the errors about files that were left out because
// they hold no mail that can be read, as opposed to files that failed.
var ErrSkipped = errors.New("skipped")

// Item is one message in a source. It may be opened more than once, and by
// several goroutines, until the iteration that gave it has ended.
type Item struct {
	Name string // the file's path; within an mbox or a zip file "path#12", "path#entry"
	Size int64  // bytes that it takes up in the source; all together they come to about Totals.Bytes
	open func() (io.ReadCloser, error)
}

// Open gives the message's exact bytes.
func (i Item) Open() (io.ReadCloser, error) { return i.open() }

// Options say how to read sources.
type Options struct {
	Mbox Mbox // how mbox files are quoted; MboxAuto by default
}

// Open finds the messages in files and folders: EML files, mbox files, zip
// files with EML files in them, each of the first two also compressed with
// gzip, Maildirs with their subfolders, and folders of any of these.
//
// A file named .eml is one message, whatever it begins with; other files are
// known by how they begin. Symbolic links are followed only where they are one
// of paths. What cannot be read, or is no mail, is given as an error with the
// path in Item.Name, and the iteration goes on; ErrSkipped tells the latter.
func Open(paths []string, o Options) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		s := &source{options: o, yield: yield}
		s.walk(paths)
	}
}

// Totals is the size of sources, for a progress bar.
type Totals struct {
	Files int
	Bytes int64
}

// Scan adds up the files that Open would look at, without reading them. What
// cannot be read is left out, as Open will report it; the error is about the
// first of paths that does not exist.
func Scan(paths []string) (Totals, error) {
	var t Totals
	for _, p := range paths {
		if _, err := os.Stat(p); err != nil {
			return t, err
		}
	}
	s := &source{scan: &t, yield: func(Item, error) bool { return true }}
	s.walk(paths)
	return t, nil
}

// source walks over paths. Its methods return false when the caller of the
// iterator has had enough.
type source struct {
	options Options
	scan    *Totals // set: only count
	yield   func(Item, error) bool
}

func (s *source) walk(paths []string) {
	for _, p := range paths {
		info, err := os.Stat(p)
		var ok bool
		switch {
		case err != nil:
			ok = s.fail(p, err)
		case info.IsDir():
			ok = s.dir(p)
		default:
			ok = s.file(p, info, placeNamed)
		}
		if !ok {
			return
		}
	}
}

func (s *source) fail(name string, err error) bool { return s.yield(Item{Name: name}, err) }

func (s *source) skip(name, why string) bool {
	return s.fail(name, fmt.Errorf("%s: %w: %s", name, ErrSkipped, why))
}

func (s *source) dir(dir string) bool {
	if isMaildir(dir) {
		return s.maildir(dir)
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !s.fail(dir, err) {
		return false
	}
	for _, e := range entries {
		if !s.entry(filepath.Join(dir, e.Name()), e, placeFolder) {
			return false
		}
	}
	return true
}

func isMaildir(dir string) bool {
	for _, sub := range []string{"cur", "new"} {
		if info, err := os.Lstat(filepath.Join(dir, sub)); err != nil || !info.IsDir() {
			return false
		}
	}
	return true
}

// maildir reads cur and new, and any folder beside them as a folder of its
// own: Maildir++ calls them .Sent, others Sent. tmp holds deliveries that were
// never completed, and files beside cur are the server's own.
func (s *source) maildir(dir string) bool {
	entries, err := os.ReadDir(dir)
	if err != nil && !s.fail(dir, err) {
		return false
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		ok := true
		switch {
		case e.Name() == "tmp" || e.Type().IsRegular():
		case e.Name() == "cur" || e.Name() == "new":
			ok = s.maildirMessages(name)
		default:
			ok = s.entry(name, e, placeFolder)
		}
		if !ok {
			return false
		}
	}
	return true
}

func (s *source) maildirMessages(dir string) bool {
	entries, err := os.ReadDir(dir)
	if err != nil && !s.fail(dir, err) {
		return false
	}
	for _, e := range entries {
		if !s.entry(filepath.Join(dir, e.Name()), e, placeMaildir) {
			return false
		}
	}
	return true
}

func (s *source) entry(name string, e fs.DirEntry, p place) bool {
	switch {
	case e.IsDir() && p != placeMaildir:
		return s.dir(name)
	case p == placeFolder && isPartial(e.Name()):
		return s.skip(name, "left over from an export that did not end")
	case e.Type()&fs.ModeSymlink != 0:
		return s.skip(name, "a symbolic link; to import what it leads to, name it as a path of its own")
	case !e.Type().IsRegular():
		return s.skip(name, "not a file")
	}
	info, err := e.Info()
	if err != nil {
		return s.fail(name, err)
	}
	return s.file(name, info, p)
}

func (s *source) file(name string, info fs.FileInfo, p place) bool {
	if !info.Mode().IsRegular() { // a pipe would block for ever
		return s.skip(name, "neither a file nor a folder")
	}
	if s.scan != nil {
		s.scan.Files++
		s.scan.Bytes += info.Size()
		return true
	}
	kind, zipped, err := detect(name, p)
	switch {
	case err != nil:
		return s.fail(name, err)
	case kind == kindMessage && zipped:
		return s.yield(Item{Name: name, Size: info.Size(), open: func() (io.ReadCloser, error) { return openGzip(name) }}, nil)
	case kind == kindMessage:
		return s.yield(Item{Name: name, Size: info.Size(), open: func() (io.ReadCloser, error) { return os.Open(name) }}, nil)
	case kind == kindMbox && zipped:
		return s.gzipMbox(name, info.Size())
	case kind == kindMbox:
		return s.mbox(name)
	case kind == kindZip && !zipped:
		return s.zip(name)
	}
	return s.skip(name, kind.why())
}
