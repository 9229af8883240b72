package netns

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// way is from one port of the switch to another.
type way struct{ from, to string }

// faults are all that is wrong with the networks. They are told to the system
// whole and at once at every change.
type faults struct {
	cut  map[way]bool
	loss map[string]int  // percent, by port
	out  map[string]bool // ports whose cable is pulled
}

func newFaults() faults {
	return faults{cut: map[way]bool{}, loss: map[string]int{}, out: map[string]bool{}}
}

// ruleset is what nft reads in the switch. The set is there also when nothing
// is cut, for people who cut by hand.
func (f faults) ruleset() string {
	var b strings.Builder
	// A table that is deleted must exist.
	b.WriteString("table bridge faults\ndelete table bridge faults\ntable bridge faults {\n\tset cut {\n\t\ttype ifname . ifname\n")
	ways := slices.SortedFunc(maps.Keys(f.cut), func(a, b way) int {
		return cmp.Or(strings.Compare(a.from, b.from), strings.Compare(a.to, b.to))
	})
	for i, w := range ways {
		ways[i] = way{fmt.Sprintf("%q", w.from), fmt.Sprintf("%q", w.to)}
	}
	if len(ways) > 0 {
		b.WriteString("\t\telements = { ")
		for i, w := range ways {
			if i > 0 {
				b.WriteString(", ")
			}
			b.WriteString(w.from + " . " + w.to)
		}
		b.WriteString(" }\n")
	}
	b.WriteString("\t}\n\tchain forward {\n\t\ttype filter hook forward priority 0\n\t\tiifname . oifname @cut drop\n")
	for _, p := range slices.Sorted(maps.Keys(f.loss)) {
		for _, end := range []string{"iifname", "oifname"} {
			fmt.Fprintf(&b, "\t\t%s %q numgen random mod 100 <= %d drop\n", end, p, f.loss[p]-1)
		}
	}
	b.WriteString("\t}\n}\n")
	return b.String()
}

// change makes a change of the faults that the packet filter applies.
func (l *Lab) change(hosts []string, card Card, change func(f *faults, ports []string)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	ports, err := l.ports(card, hosts)
	if err != nil {
		return err
	}
	change(&l.faults, ports)
	return l.applyFaults()
}

// ports are those of hosts that have a card on the network.
func (l *Lab) ports(card Card, hosts []string) (ports []string, err error) {
	for _, host := range hosts {
		if !l.Addr(card, host).IsValid() {
			return nil, fmt.Errorf("there is no host %s with a card on the network %s", host, card)
		}
		ports = append(ports, port(card, host))
	}
	return ports, nil
}

func (l *Lab) applyFaults() error {
	return enter(l.Switch(), func() error {
		_, err := command(l.faults.ruleset(), "nft", "-f", "-")
		return err
	})
}

// Cut lets everything between two hosts on a network vanish. Connections stay
// open and say nothing more.
func (l *Lab) Cut(card Card, a, b string) error {
	return l.change([]string{a, b}, card, func(f *faults, p []string) {
		f.cut[way{p[0], p[1]}], f.cut[way{p[1], p[0]}] = true, true
	})
}

// CutOneWay lets what a host sends to another one vanish.
func (l *Lab) CutOneWay(card Card, from, to string) error {
	return l.change([]string{from, to}, card, func(f *faults, p []string) { f.cut[way{p[0], p[1]}] = true })
}

// Isolate cuts a host off from all others on a network. Unlike with a pulled
// cable, nobody on it can tell.
func (l *Lab) Isolate(card Card, host string) error {
	hosts := []string{host}
	for _, h := range l.hosts {
		if h.Name != host && slices.Contains(h.Cards, card) {
			hosts = append(hosts, h.Name)
		}
	}
	return l.change(hosts, card, func(f *faults, p []string) {
		for _, other := range p[1:] {
			f.cut[way{p[0], other}], f.cut[way{other, p[0]}] = true, true
		}
	})
}

// Heal ends cuts between two hosts on a network.
func (l *Lab) Heal(card Card, a, b string) error {
	return l.change([]string{a, b}, card, func(f *faults, p []string) {
		delete(f.cut, way{p[0], p[1]})
		delete(f.cut, way{p[1], p[0]})
	})
}

// Loss lets this many of a hundred packets vanish at random of those that a
// host sends, and as many of those that are sent to it, on one network; 0 ends
// that.
func (l *Lab) Loss(card Card, host string, percent int) error {
	if percent < 0 || percent > 100 {
		return fmt.Errorf("%d of a hundred packets cannot be lost", percent)
	}
	return l.change([]string{host}, card, func(f *faults, p []string) {
		if f.loss[p[0]] = percent; percent == 0 {
			delete(f.loss, p[0])
		}
	})
}

// Unplug pulls the cable of a card: the host sees that the link is down.
func (l *Lab) Unplug(card Card, host string) error { return l.setLink(card, host, true) }

// Plug puts it back.
func (l *Lab) Plug(card Card, host string) error { return l.setLink(card, host, false) }

func (l *Lab) setLink(card Card, host string, out bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	ports, err := l.ports(card, []string{host})
	if err != nil {
		return err
	}
	return l.setPort(ports[0], out)
}

// setPort is called with l.mu held.
func (l *Lab) setPort(port string, out bool) error {
	state := map[bool]string{true: "down", false: "up"}[out]
	if err := l.ip(switchName, "link set "+port+" "+state+"\n"); err != nil {
		return err
	}
	if l.faults.out[port] = out; !out {
		delete(l.faults.out, port)
	}
	return nil
}

// HealAll ends everything that was done to the networks.
func (l *Lab) HealAll() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for port := range l.faults.out {
		if err := l.setPort(port, false); err != nil {
			return err
		}
	}
	l.faults = newFaults()
	return l.applyFaults()
}
