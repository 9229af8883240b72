package lb

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"chainmail/membership/ring"
	"chainmail/node/api"
)

// Cluster is what a balancer must know of one: an immutable value.
type Cluster struct {
	ID    string
	Nodes []Node // that keep mail, in the order of their names
}

// Node is a member as a balancer sees it.
type Node struct {
	Name string
	SMTP Address // where it takes mail
	HTTP Address // its health, API and console
	// Mail and Web say whether it gets new SMTP and HTTP connections: empty, or
	// why not, in one of the words below.
	Mail, Web Out
}

// Out says why a node gets no new connections; empty: it gets some.
type Out string

// The reasons. They stand in the rendered files, so they are few and do not
// change by themselves: a number in them would be a reload each time.
const (
	In          Out = ""
	Draining    Out = "draining"
	Full        Out = "full"
	Starting    Out = "starting"
	Unreachable Out = "unreachable"
	CutOff      Out = "cut off from the other nodes"
	NoSMTP      Out = "its SMTP port does not answer"
)

// Address is a host, which is an IP address or a plain DNS name, and a port. The
// zero value is no address.
type Address struct {
	host string
	port uint16
}

// hostPattern is a DNS name; underscores are in use in private networks.
var hostPattern = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*$`)

const maxHost = 253 // characters, RFC 1035 2.3.4

// ParseAddress reads host:port. Only what it returns may enter a file.
func ParseAddress(text string) (Address, error) {
	host, portText, err := net.SplitHostPort(text)
	if err != nil {
		return Address{}, fmt.Errorf("%q is not host:port", text)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 {
		return Address{}, fmt.Errorf("%q: the port must be a number from 1 to 65535", text)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		switch {
		case ip.Zone() != "":
			return Address{}, fmt.Errorf("%q: an address with a zone means something on one machine only", text)
		case ip.IsUnspecified():
			return Address{}, fmt.Errorf("%q is nobody's address", text)
		}
		return Address{ip.Unmap().String(), uint16(port)}, nil
	}
	if len(host) > maxHost || !hostPattern.MatchString(host) {
		return Address{}, fmt.Errorf("%q: the host is neither an IP address nor a plain DNS name", text)
	}
	return Address{strings.ToLower(host), uint16(port)}, nil
}

// String is host:port, with brackets around an IPv6 address.
func (a Address) String() string {
	if a.IsZero() {
		return ""
	}
	return net.JoinHostPort(a.host, strconv.Itoa(int(a.port)))
}

// IsZero reports whether it is no address.
func (a Address) IsZero() bool { return a.host == "" }

// Host is the IP address or name alone.
func (a Address) Host() string { return a.host }

// Port is the port.
func (a Address) Port() uint16 { return a.port }

// IP is the host as an IP address; invalid when it is a name.
func (a Address) IP() netip.Addr {
	ip, _ := netip.ParseAddr(a.host)
	return ip
}

// at is the same host with another port, or none for port 0.
func (a Address) at(port uint16) Address {
	if port == 0 || a.IsZero() {
		return Address{}
	}
	return Address{a.host, port}
}

// ErrNobody is returned for a cluster in which no member can be balanced to.
var ErrNobody = errors.New("the cluster's answer names no node that keeps mail and has an SMTP address")

// clusterID is what identities of clusters look like; it stands in comments.
var clusterID = regexp.MustCompile(`^[0-9a-f]{1,64}$`)

// maxMembers bounds whom this machine asks each second because somebody said so.
const maxMembers = 256

// Read takes from a node's answer what a balancer needs, with every member as
// that node sees it. Members whose name or address could be anything else than
// that are left out; problems names them.
func Read(answer api.Cluster, l Layout) (c Cluster, problems []string, err error) {
	if c.ID = answer.ID; !clusterID.MatchString(c.ID) {
		return Cluster{}, nil, fmt.Errorf("the answer is not that of a cluster: its identity is %.80q", answer.ID)
	}
	if len(answer.Members) > maxMembers {
		return Cluster{}, nil, fmt.Errorf("the answer names %d members: at most %d are followed", len(answer.Members), maxMembers)
	}
	for _, m := range answer.Members {
		if m.Role != string(ring.Data) {
			continue
		}
		n, err := readNode(m, l)
		if err == nil && slices.ContainsFunc(c.Nodes, func(o Node) bool { return o.Name == n.Name }) {
			err = errors.New("another member has this name")
		}
		if err != nil {
			problems = append(problems, fmt.Sprintf("member %.80q is left out: %v", m.Name, err))
			continue
		}
		c.Nodes = append(c.Nodes, n)
	}
	slices.SortFunc(c.Nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	if len(c.Nodes) == 0 {
		return Cluster{}, problems, ErrNobody
	}
	return c, problems, nil
}

func readNode(m api.Member, l Layout) (n Node, err error) {
	if err := ring.CheckName(m.Name); err != nil {
		return n, err
	}
	n.Name = m.Name
	if n.SMTP, err = ParseAddress(m.Addresses["smtp"]); err != nil {
		return n, fmt.Errorf("its SMTP address: %w", err)
	}
	if n.HTTP, err = ParseAddress(m.Addresses["http"]); err != nil {
		return n, fmt.Errorf("its HTTP address: %w", err)
	}
	if l.HTTPOnFront {
		n.HTTP = n.SMTP.at(n.HTTP.Port())
	}
	if err := l.reaches(n.SMTP, n.HTTP); err != nil {
		return n, err
	}
	n.Mail, n.Web = seen(m)
	return n, nil
}

// seen is whether a member should get connections, by the word of the node that
// told of it.
func seen(m api.Member) (mail, web Out) {
	if m.State == api.StateUnreachable || m.Self == nil {
		return Unreachable, Unreachable
	}
	if m.State == string(ring.Draining) {
		return Draining, In
	}
	return mailState(m.Self.State), In
}

// mailState is whether a node that says this of itself takes mail.
func mailState(state string) Out {
	switch state {
	case api.StateActive, api.StateJoining:
		return In
	case api.StateFull:
		return Full
	case api.StateDraining:
		return Draining
	default:
		return Starting
	}
}

// kept is the cluster with all nodes in that would be out, when no node is in:
// a balancer without nodes refuses everybody, and one of them may be well.
func (c Cluster) kept() Cluster {
	c.Nodes = slices.Clone(c.Nodes)
	for _, service := range services {
		if slices.ContainsFunc(c.Nodes, func(n Node) bool { return *service.of(&n) == In }) {
			continue
		}
		for i := range c.Nodes {
			*service.of(&c.Nodes[i]) = In
		}
	}
	return c
}

// services are what a node may be in or out of.
var services = []struct {
	name string
	of   func(*Node) *Out
}{
	{"smtp", func(n *Node) *Out { return &n.Mail }},
	{"http", func(n *Node) *Out { return &n.Web }},
}

// since tells people what is other than it was.
func (c Cluster) since(was Cluster) (all []string) {
	say := func(format string, a ...any) { all = append(all, fmt.Sprintf(format, a...)) }
	for _, n := range c.Nodes {
		before, known := was.node(n.Name)
		if !known {
			say("%s is new (SMTP %s, HTTP %s)", n.Name, n.SMTP, n.HTTP)
			before = Node{SMTP: n.SMTP, HTTP: n.HTTP}
		}
		if before.SMTP != n.SMTP || before.HTTP != n.HTTP {
			say("%s moved to SMTP %s, HTTP %s", n.Name, n.SMTP, n.HTTP)
		}
		for _, s := range services {
			switch was, is := *s.of(&before), *s.of(&n); {
			case was == is:
			case is == In:
				say("%s gets new %s connections again", n.Name, s.name)
			default:
				say("%s gets no new %s connections: %s", n.Name, s.name, is)
			}
		}
	}
	for _, n := range was.Nodes {
		if _, stays := c.node(n.Name); !stays {
			say("%s is a member no more", n.Name)
		}
	}
	slices.Sort(all)
	return all
}
