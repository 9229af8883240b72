package membership

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The files of a cluster directory; see the package's documentation.
const (
	viewFile = "view.json"
	nodeFile = "node.pem"
	nextFile = "next.pem"
	raftDir  = "raft"
	lockFile = "lock"
)

// Suffixes of the directories beside it.
const (
	newSuffix  = ".new"
	joinSuffix = ".join"
	oldSuffix  = ".old"
)

// Exists reports whether dir belongs to a cluster.
func Exists(dir string) bool {
	return complete(dir) || complete(dir+newSuffix)
}

// complete reports whether a cluster directory is whole: the view is written
// last.
func complete(dir string) bool { return exists(filepath.Join(dir, viewFile)) }

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// writeFile replaces a file so that after a power cut either the old or the
// new content is there.
func writeFile(path string, content []byte) error {
	temp := path + ".tmp"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if errClose := f.Close(); err == nil {
		err = errClose
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		os.Remove(temp)
		return err
	}
	return syncDir(filepath.Dir(path))
}

// removeFile makes sure that the file stays away.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// syncTree makes the names and contents of a tree durable.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return syncDir(path) // a file is synced by the same call
	})
}

// writeState keeps the state in a cluster directory.
func writeState(dir string, s state) error {
	b, err := encodeState(s)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, viewFile), b)
}

func readState(dir string) (state, error) {
	path := filepath.Join(dir, viewFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, fail(ErrNoCluster, "%s belongs to no cluster: create one with 'chainmail node', or join one with 'chainmail join-node'", dir)
	}
	if err != nil {
		return state{}, fmt.Errorf("reading the cluster's view: %w: it must be readable for the node's user", err)
	}
	s, err := decodeState(b)
	if err != nil {
		return state{}, fmt.Errorf("the cluster's view %s is damaged: %w: the mail is not affected; move %s away and come back with 'chainmail join-node --replace' and a token of another member", path, err, dir)
	}
	return s, nil
}

func readIdentity(dir string) (identity, error) {
	path := filepath.Join(dir, nodeFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return identity{}, fmt.Errorf("reading the node's certificate: %w: it must be readable for the node's user", err)
	}
	id, err := decodeIdentity(b)
	if err != nil {
		return identity{}, fmt.Errorf("the node's certificate %s is damaged: %w: the mail is not affected; move %s away and come back with 'chainmail join-node --replace' and a token of another member", path, err, dir)
	}
	return id, nil
}

// lockDir keeps other processes out of a cluster directory until the returned
// file is closed.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the cluster directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fail(ErrInUse, "%s is in use by another process: stop the node first", dir)
	}
	return f, nil
}

// A directory is replaced by two renames. Killed between them, it is missing,
// and the new one is complete: settle does the second one.

// replaceDir puts the new directory in the place of path. What was there before
// is kept beside it as path.old.
func replaceDir(path string) error {
	if exists(path) {
		if err := os.RemoveAll(path + oldSuffix); err != nil {
			return err
		}
		if err := os.Rename(path, path+oldSuffix); err != nil {
			return err
		}
	}
	return settle(path)
}

// settle ends a replacement that was interrupted.
func settle(path string) error {
	if exists(path) || !exists(path+newSuffix) {
		return nil
	}
	if err := os.Rename(path+newSuffix, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// settleCluster is settle for a cluster directory, which is made in steps: one
// that is not complete is nothing.
func settleCluster(dir string) error {
	if !complete(dir + newSuffix) {
		return nil
	}
	return settle(dir)
}

// makeCluster makes the cluster directory dir: raft fills its Raft directory,
// or leaves it empty for a log that comes from the leader.
func makeCluster(dir string, s state, pem []byte, raft func(dir string) error) error {
	made := dir + newSuffix
	if err := os.RemoveAll(made); err != nil {
		return err
	}
	raftPath := filepath.Join(made, raftDir)
	if err := os.MkdirAll(raftPath, 0o700); err != nil {
		return err
	}
	if err := raft(raftPath); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(made, nodeFile), pem); err != nil {
		return err
	}
	if err := syncTree(made); err != nil {
		return err
	}
	if err := writeState(made, s); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(dir)); err != nil {
		return err
	}
	return replaceDir(dir)
}
