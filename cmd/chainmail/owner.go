package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A data directory belongs to one user: the packages' service runs as that one.
// Root who works in it by hand must leave no file there that the service cannot
// read, and must not be led astray by links that its owner put there. So what
// is done in a directory of somebody else is done as that user.

// owner is the user that a directory belongs to.
type owner struct {
	uid, gid int
	groups   []int
	name     string
	home     string // empty: unknown
}

// otherOwner returns the owner of a directory when this process is root's and
// the directory is there and somebody else's.
func otherOwner(dir string) (o owner, other bool, err error) {
	if os.Geteuid() != 0 {
		return o, false, nil
	}
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return o, false, nil
	}
	if err != nil {
		return o, false, err
	}
	is := info.Sys().(*syscall.Stat_t)
	if is.Uid == 0 {
		return o, false, nil
	}
	return ownerOf(is.Uid, is.Gid), true, nil
}

// ownerOf looks a user up. One that is nobody's, as after a disk was moved, has
// the group of the directory.
func ownerOf(uid, gid uint32) owner {
	o := owner{uid: int(uid), gid: int(gid), name: "user " + strconv.Itoa(int(uid))}
	o.groups = []int{o.gid}
	u, err := user.LookupId(strconv.Itoa(o.uid))
	if err != nil {
		return o
	}
	o.name, o.home = u.Username, u.HomeDir
	if primary, err := strconv.Atoi(u.Gid); err == nil {
		o.gid, o.groups = primary, []int{primary}
	}
	ids, err := u.GroupIds()
	if err != nil {
		return o
	}
	for _, id := range ids {
		if n, err := strconv.Atoi(id); err == nil && n != o.gid {
			o.groups = append(o.groups, n)
		}
	}
	return o
}

// actAsOwner makes this process act as the owner of a directory until back is
// called, when it is root's; notes tell whoever started it. Where there is
// nothing to change, back does nothing.
func actAsOwner(notes io.Writer, dir string) (back func() error, err error) {
	o, other, err := otherOwner(dir)
	if err != nil || !other {
		return func() error { return nil }, err
	}
	groups, err := os.Getgroups()
	if err != nil {
		return nil, err
	}
	gid := os.Getegid()
	back = func() error {
		// Root first: only root may choose groups.
		return errors.Join(syscall.Setresuid(-1, 0, -1), syscall.Setresgid(-1, gid, -1), syscall.Setgroups(groups))
	}
	err = errors.Join(syscall.Setgroups(o.groups), syscall.Setresgid(-1, o.gid, -1), syscall.Setresuid(-1, o.uid, -1))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot act as %s, who owns %s: %w", o.name, dir, err), back())
	}
	fmt.Fprintf(notes, "%s belongs to %s: working in it as that user.\n", sanitize(dir), sanitize(o.name))
	return back, nil
}

// asOwner does something as actAsOwner.
func asOwner(notes io.Writer, dir string, do func() error) error {
	back, err := actAsOwner(notes, dir)
	if err != nil {
		return err
	}
	return errors.Join(do(), back())
}

// nearest is a directory, or the first one above it that is there: in that it
// will be made.
func nearest(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	for err == nil && !exists(dir) && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
	}
	return dir, err
}

// refuseOthers is for what root cannot do in a directory of somebody else as that
// user: root's programs would take what that user may put there.
func refuseOthers(flag, dir string) error {
	dir, err := nearest(dir)
	if err != nil {
		return err
	}
	o, other, err := otherOwner(dir)
	if err != nil || !other {
		return err
	}
	return usageError{fmt.Errorf("%s: %s belongs to %s, and root would read there whatever that user wrote: name a folder of root's, or run this as that user", flag, dir, o.name)}
}

// becomeOwner replaces this process, when it is root's, by one of the owner of
// a directory with another command line: a node that keeps running. Of root's
// powers it keeps only that of ports below 1024. It returns when there is
// nothing to change.
func becomeOwner(notes io.Writer, dir string, args []string) error {
	o, other, err := otherOwner(dir)
	if err != nil || !other {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	fmt.Fprintf(notes, "%s belongs to %s: running as that user.\n", sanitize(dir), sanitize(o.name))
	return fmt.Errorf("cannot run %s as %s, who owns %s: %w: put the program where that user can run it, or start the service", program, o.name, dir, execAs(o, program, args))
}

// execAs returns only when it fails; then this process must end.
func execAs(o owner, program string, args []string) error {
	runtime.LockOSThread() // capabilities are a thread's, and exec takes those of the thread that calls it
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return err
	}
	if err := errors.Join(syscall.Setgroups(o.groups), syscall.Setresgid(o.gid, o.gid, o.gid), syscall.Setresuid(o.uid, o.uid, o.uid)); err != nil {
		return err
	}
	// A container may have taken this power away; then the node says that it
	// cannot listen, if it wants to.
	_ = keepCapability(unix.CAP_NET_BIND_SERVICE)
	return syscall.Exec(program, append([]string{os.Args[0]}, args...), o.environment(os.Environ()))
}

// passed are the variables that say what was meant for the program, by the
// beginnings of their names; one with "=" at its end is whole.
var passed = []string{
	"PATH=", "LANG=", "LC_", "TZ=", envPrefix + "_",
	"NOTIFY_SOCKET=", "WATCHDOG_", "JOURNAL_STREAM=", // the supervisor's
}

// environment is what a process of the owner gets of root's. Root's shell may
// hold secrets, and names of root's own folders and agents: everything in it can
// be read by whoever else runs as the owner.
func (o owner) environment(roots []string) []string {
	own := slices.DeleteFunc(slices.Clone(roots), func(v string) bool {
		return !slices.ContainsFunc(passed, func(begin string) bool { return strings.HasPrefix(v, begin) })
	})
	if o.home != "" {
		own = append(own, "HOME="+o.home)
	}
	return own
}

// keepCapability lets this thread keep one capability, and no other, through
// exec.
func keepCapability(number int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	one := uint32(1) << number // those below 32 are in the first half
	data := [2]unix.CapUserData{{Effective: one, Permitted: one, Inheritable: one}}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(number), 0, 0)
}
