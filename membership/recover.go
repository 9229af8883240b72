package membership

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"chainmail/membership/ring"
)

// Recover is the last resort when a majority of the voters is gone for good:
// the stopped node of dir alone becomes the cluster. The others are removed
// from its view, so that their certificates are refused; each of them can come
// back with join-node and keeps its mail. It returns a report for people. Only
// one node of a cluster may ever do this; the others must be stopped.
func Recover(dir string) (report string, err error) {
	if err := settleCluster(dir); err != nil {
		return "", err
	}
	if !complete(dir) {
		_, err := readState(dir)
		return "", err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	known, err := readState(dir)
	if err != nil {
		return "", err
	}
	id, err := readIdentity(dir)
	if err != nil {
		return "", err
	}
	f := &recovery{id: id.id, known: known}
	log := raftLog{libraryLog: newLibraryLog(slog.New(slog.DiscardHandler), "raft")}
	if err := f.read(dir, log); err != nil {
		return "", err
	}
	if err := f.isolate(); err != nil {
		return "", err
	}
	if len(f.next.CA.Key) == 0 {
		return "", errors.New("this node never learned the cluster's CA key, so it cannot let anybody join: recover on another member")
	}
	// From here on a repetition finds the same or a further state.
	if err := f.rebuild(dir, log); err != nil {
		return "", err
	}
	if err := writeState(dir, f.next); err != nil {
		return "", err
	}
	return f.report(), nil
}

// recovery turns what a node knows into a cluster of its own.
type recovery struct {
	id    string
	known state // the best state there is
	next  state // what it becomes
	note  string
	gone  []ring.Member
}

// read takes the entries of Raft's log into account, if it can be read: what a
// lost leader committed may have reached this node's log, and not its view.
func (r *recovery) read(dir string, log raftLog) error {
	path := filepath.Join(dir, raftDir)
	if err := settle(path); err != nil {
		return err
	}
	f := &fsm{}
	if err := readLog(path, f, log); err != nil {
		r.note = fmt.Sprintf("The cluster's log could not be read (%v); it is kept as %s, and the last view that this node knew is used.", err, path+oldSuffix)
		return nil
	}
	if s := f.get(); s.View.Epoch > r.known.View.Epoch && s.View.Cluster == r.known.View.Cluster {
		r.known = s
	}
	return nil
}

// isolate works out the state in which this node is alone.
func (r *recovery) isolate() error {
	i := slices.IndexFunc(r.known.View.Members, func(m ring.Member) bool { return m.ID == r.id })
	if i < 0 {
		return &textError{ErrNotMember, "this node was removed from its cluster and cannot become it: let it join again with 'chainmail join-node'"}
	}
	self := r.known.View.Members[i]
	for _, m := range r.known.View.Members {
		if m.ID != r.id {
			r.gone = append(r.gone, m)
		}
	}
	c := command{ID: newID(), At: time.Now().UTC(), Recover: &recoverOne{Name: self.Name, Key: newGossipKey()}}
	var res result
	if r.next, res = r.known.apply(c); res.Refused != nil {
		return res.Refused
	}
	return nil
}

// rebuild makes a log that begins with the new state.
func (r *recovery) rebuild(dir string, log raftLog) error {
	path := filepath.Join(dir, raftDir)
	fresh := path + newSuffix
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := seedRaft(fresh, r.id, &fsm{state: r.next}, log); err != nil {
		return fmt.Errorf("making the cluster's new log: %w", err)
	}
	if err := syncTree(fresh); err != nil {
		return err
	}
	return replaceDir(path)
}

func (r *recovery) report() string {
	self := r.next.View.Members[0]
	var b strings.Builder
	fmt.Fprintf(&b, "%s alone is now cluster %s, at epoch %d.\n", self.Name, r.next.View.Cluster, r.next.View.Epoch)
	if r.note != "" {
		fmt.Fprintln(&b, r.note)
	}
	if len(r.gone) > 0 {
		var names []string
		for _, m := range r.gone {
			names = append(names, m.Name)
		}
		fmt.Fprintf(&b, "Removed: %s. Their certificates are refused from now on.\n", strings.Join(names, ", "))
		fmt.Fprintf(&b, "Do not start them as they are. Start %s with 'chainmail node', make a token for each with 'chainmail token join', and bring each back with 'chainmail join-node': it keeps its mail and hands over what only it has.\n", self.Name)
	} else {
		fmt.Fprintf(&b, "Start it with 'chainmail node'.\n")
	}
	return b.String()
}
