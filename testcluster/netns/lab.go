package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Card is a network, and the card of a host on it.
type Card string

// The two networks.
const (
	Front Card = "front" // clients, balancers, nodes
	Chain Card = "chain" // nodes among themselves
)

var networks = map[Card]netip.Prefix{
	Front: netip.MustParsePrefix("192.0.2.0/24"),
	Chain: netip.MustParsePrefix("198.51.100.0/24"),
}

// Host is a machine to make.
type Host struct {
	Name   string // small letters and digits, not more than 9
	Number byte   // the last of its addresses' four
	Cards  []Card
}

// Lab is some hosts and the two networks between them. Its methods may be
// called by any goroutine.
type Lab struct {
	prefix string
	hosts  []Host // never changed

	mu     sync.Mutex
	faults faults
}

const switchName = "switch"

var hostName = regexp.MustCompile(`^[a-z0-9]{1,9}$`) // "chain-" and the name make that of an interface

// Available says why there can be no hosts here; nil: there can.
func Available() error {
	if os.Geteuid() != 0 {
		return errors.New("hosts of network namespaces can be made by root only: run this as root")
	}
	for _, p := range []struct{ program, debian string }{{"ip", "iproute2"}, {"nft", "nftables"}} {
		if _, err := find(p.program); err != nil {
			return fmt.Errorf("hosts of network namespaces need the program %s: install the Debian package %s", p.program, p.debian)
		}
	}
	return nil
}

// find looks for a program also where it is for root only.
func find(program string) (string, error) {
	for _, name := range []string{program, filepath.Join("/usr/sbin", program), filepath.Join("/sbin", program)} {
		if file, err := exec.LookPath(name); err == nil {
			return file, nil
		}
	}
	return "", fmt.Errorf("there is no program %s", program)
}

// command runs ip or nft with an input; what they say is the error.
func command(input, program string, args ...string) (string, error) {
	file, err := find(program)
	if err != nil {
		return "", err
	}
	cmd := exec.Command(file, args...)
	cmd.Stdin = strings.NewReader(input)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return string(out), nil
}

// New removes what dead processes left, and makes hosts, connected and with
// addresses. The caller closes the lab.
func New(hosts ...Host) (*Lab, error) {
	if err := Available(); err != nil {
		return nil, err
	}
	for _, h := range hosts {
		if !hostName.MatchString(h.Name) || h.Name == switchName {
			return nil, fmt.Errorf("netns: %q cannot be the name of a host", h.Name)
		}
	}
	prefix, err := newPrefix()
	if err != nil {
		return nil, err
	}
	l := &Lab{prefix: prefix, hosts: slices.Clone(hosts), faults: newFaults()}
	if err := l.build(); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot make network namespaces: %w", err), l.Close())
	}
	return l, nil
}

// build makes namespaces, cables and addresses.
func (l *Lab) build() error {
	var spaces, cables strings.Builder
	fmt.Fprintf(&spaces, "netns add %s\n", l.space(switchName))
	for _, card := range []Card{Front, Chain} {
		fmt.Fprintf(&cables, "link add %[1]s type bridge\nlink set %[1]s up\n", card)
	}
	for _, h := range l.hosts {
		fmt.Fprintf(&spaces, "netns add %s\n", l.space(h.Name))
		for _, card := range h.Cards {
			fmt.Fprintf(&cables, "link add %[1]s type veth peer name %[2]s netns %[3]s\nlink set %[1]s master %[2]s up\n", port(card, h.Name), card, l.space(h.Name))
		}
	}
	if _, err := command(spaces.String(), "ip", "-batch", "-"); err != nil {
		return err
	}
	if err := l.ip(switchName, cables.String()); err != nil {
		return err
	}
	for _, h := range l.hosts {
		setUp := "link set lo up\n"
		for _, card := range h.Cards {
			setUp += fmt.Sprintf("address add %s/%d dev %[3]s\nlink set %[3]s up\n", h.addr(card), networks[card].Bits(), card)
		}
		if err := l.ip(h.Name, setUp); err != nil {
			return err
		}
	}
	return l.applyFaults()
}

// ip gives commands to ip in the namespace of a host.
func (l *Lab) ip(host, batch string) error {
	_, err := command(batch, "ip", "-n", l.space(host), "-batch", "-")
	return err
}

// port is the interface in the switch that the cable of a card ends in.
func port(card Card, host string) string { return string(card) + "-" + host }

func (h Host) addr(card Card) netip.Addr {
	a := networks[card].Addr().As4()
	a[3] = h.Number
	return netip.AddrFrom4(a)
}

// Addr is the address of a host on a network, the zero one when it has none.
func (l *Lab) Addr(card Card, host string) netip.Addr {
	i := slices.IndexFunc(l.hosts, func(h Host) bool { return h.Name == host })
	if i < 0 || !slices.Contains(l.hosts[i].Cards, card) {
		return netip.Addr{}
	}
	return l.hosts[i].addr(card)
}

// Space is the namespace of a host, as "ip netns exec" takes it.
func (l *Lab) Space(host string) (string, error) {
	if !slices.ContainsFunc(l.hosts, func(h Host) bool { return h.Name == host }) {
		return "", fmt.Errorf("there is no host %s", host)
	}
	return l.space(host), nil
}

// Switch is the namespace of the bridges and of all faults.
func (l *Lab) Switch() string { return l.space(switchName) }

func (l *Lab) space(host string) string { return l.prefix + host }

// Close kills what still runs on the hosts, and removes them.
func (l *Lab) Close() error {
	names := []string{l.Switch()}
	for _, h := range l.hosts {
		names = append(names, l.space(h.Name))
	}
	return remove(names)
}

const spacesDir = "/run/netns" // where ip keeps them

var (
	ourSpace = regexp.MustCompile(`^chainmail-([0-9]+)-([0-9]+)-`)

	// made counts the labs of this process. What another one had made that was
	// given the same number by the system counts further.
	made struct {
		sync.Mutex
		labs int
	}
)

func newPrefix() (string, error) {
	made.Lock()
	defer made.Unlock()
	if err := clean(made.labs); err != nil {
		return "", err
	}
	made.labs++
	return fmt.Sprintf("chainmail-%d-%d-", os.Getpid(), made.labs), nil
}

// Clean removes the hosts of processes that ended without Close, and kills what
// still runs on them.
func Clean() error {
	made.Lock()
	defer made.Unlock()
	return clean(made.labs)
}

// clean knows how many labs this process has made.
func clean(own int) error {
	entries, err := os.ReadDir(spacesDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var stale []string
	for _, e := range entries {
		if m := ourSpace.FindStringSubmatch(e.Name()); m != nil {
			pid, _ := strconv.Atoi(m[1])
			lab, _ := strconv.Atoi(m[2])
			if pid == os.Getpid() && lab > own || errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
				stale = append(stale, e.Name())
			}
		}
	}
	return remove(stale)
}

// remove kills what runs in namespaces and deletes those that there are.
func remove(spaces []string) error {
	var errs []error
	for _, name := range spaces {
		if err := removeOne(name); err != nil {
			// Others may clean at the same time.
			if _, gone := os.Stat(filepath.Join(spacesDir, name)); gone == nil {
				errs = append(errs, fmt.Errorf("cannot remove the network namespace %s: %w: remove it with: ip netns delete %[1]s", name, err))
			}
		}
	}
	return errors.Join(errs...)
}

func removeOne(name string) error {
	const patience = 5 * time.Second
	for begun := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		pids, err := processes(name)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			_, err := command("", "ip", "netns", "delete", name)
			return err
		}
		if time.Since(begun) > patience {
			return fmt.Errorf("the processes %v in it do not end", pids)
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it has ended meanwhile, else
		}
	}
}

// processes are those in a namespace. This process may have a thread in there.
func processes(space string) (pids []int, err error) {
	out, err := command("", "ip", "netns", "pids", space)
	for _, field := range strings.Fields(out) {
		if pid, err := strconv.Atoi(field); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids, err
}
