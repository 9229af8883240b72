package lb

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// DNS is how a zone names the nodes, for those who balance by DNS alone.
type DNS struct {
	Domain string        // that mail is sent to, such as archive.example.com
	TTL    time.Duration // of all records
	// Also are further addresses of nodes by their names, such as IPv6 ones: a
	// node advertises one.
	Also map[string][]netip.Addr
}

// Validate says what is wrong.
func (d DNS) Validate() error {
	domain := strings.TrimSuffix(d.Domain, ".")
	switch {
	case domain == "":
		return errors.New("--domain is missing: give the domain that journal mail is sent to, such as archive.example.com")
	case len(domain) > maxHost || !hostPattern.MatchString(domain) || !strings.Contains(domain, "."):
		return fmt.Errorf("--domain is %q: write a domain such as archive.example.com", d.Domain)
	case d.TTL < time.Second || d.TTL > 7*24*time.Hour:
		return fmt.Errorf("--ttl is %v: use 1s to 168h", d.TTL)
	}
	return nil
}

// host is a node that has records.
type host struct {
	Name      string // with its dot at the end
	Node      Node
	Addresses []netip.Addr // none: the node advertises a name, whose records are somebody else's
}

type dnsData struct {
	Cluster
	Domain string
	TTL    int
	Hosts  []host
	Out    []Node // that leave the cluster
	Odd    []Node // whose SMTP port is not 25
}

// UnknownNodeError is a name of DNS.Also that no node has.
type UnknownNodeError struct{ Name string }

func (e *UnknownNodeError) Error() string {
	return fmt.Sprintf("--also names %q, which is no node of the cluster", e.Name)
}

// RenderDNS is a piece of a zone file: MX records of one preference, so that
// clients try the nodes in random order (RFC 5321 5.1), SRV records with the
// ports (RFC 2782), and the hosts' addresses. Members that leave the cluster are
// left out; those that are merely down stay: clients try the next host, and zones
// change slowly.
func RenderDNS(c Cluster, d DNS) ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, err
	}
	if len(c.Nodes) == 0 {
		return nil, ErrNobody
	}
	data := dnsData{Cluster: c, Domain: strings.ToLower(strings.TrimSuffix(d.Domain, ".")) + ".", TTL: int(d.TTL / time.Second)}
	for _, n := range c.committed().kept().Nodes {
		if n.Mail != In {
			data.Out = append(data.Out, n)
			continue
		}
		data.Hosts = append(data.Hosts, d.host(n, data.Domain))
		if n.SMTP.Port() != 25 {
			data.Odd = append(data.Odd, n)
		}
	}
	for name := range d.Also {
		if _, ok := c.node(name); !ok {
			return nil, &UnknownNodeError{name}
		}
	}
	text, err := execute("dns.tmpl", data)
	if err != nil {
		return nil, err
	}
	return []byte(header(c, ";") + "\n" + strings.TrimRight(text, "\n") + "\n"), nil
}

func (d DNS) host(n Node, domain string) host {
	h := host{Name: labels(n.Name) + "." + domain, Node: n}
	if ip := n.SMTP.IP(); ip.IsValid() {
		h.Addresses = append(h.Addresses, ip)
	} else {
		h.Name = strings.TrimSuffix(n.SMTP.Host(), ".") + "."
	}
	h.Addresses = append(h.Addresses, d.Also[n.Name]...)
	return h
}

// labels is the name of a node as names of hosts may be (RFC 1123 2.1).
func labels(name string) string {
	var list []string
	for _, label := range strings.FieldsFunc(strings.ReplaceAll(name, "_", "-"), func(r rune) bool { return r == '.' }) {
		if label = strings.Trim(label, "-"); label != "" {
			list = append(list, label)
		}
	}
	return strings.Join(list, ".")
}

func (c Cluster) node(name string) (Node, bool) {
	for _, n := range c.Nodes {
		if n.Name == name {
			return n, true
		}
	}
	return Node{}, false
}
