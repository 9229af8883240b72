package lb

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"chainmail/node/api"
)

// HTTPMode is how HTTP is passed on.
type HTTPMode string

// The modes.
const (
	// Proxy: the balancer ends the client's HTTP, with or without TLS, and asks
	// the nodes by TLS that is verified against the cluster's CA.
	Proxy HTTPMode = "proxy"
	// Passthrough: bytes are passed on as they are. Clients see the nodes' own
	// certificates, and the nodes see the balancer's address.
	Passthrough HTTPMode = "passthrough"
)

// The cookies of stickiness.
const (
	SessionCookie = "chainmail_session" // the console's own
	NodeCookie    = "chainmail_node"    // the balancer's: which node answered
)

// NodeName is the name that every node's certificate carries.
const NodeName = api.NodeName

// Layout is how a balancer stands between clients and nodes.
type Layout struct {
	// Where clients connect; a service with none is not served.
	SMTP, SMTPS, HTTP []netip.AddrPort
	// SMTPSPort is the nodes' port for SMTP that begins with TLS. It is the
	// nodes who end that TLS.
	SMTPSPort uint16
	HTTPMode  HTTPMode
	// HTTPCert and HTTPKey are files for TLS with clients; empty: plain HTTP.
	HTTPCert, HTTPKey string
	// CA is the file with the cluster's CA certificate; needed for Proxy.
	CA string
	// Source is the address from which nodes are reached; invalid: the system
	// chooses.
	Source netip.Addr
	// HTTPOnFront reaches a node's HTTP port at the host of its SMTP address: for
	// balancers that are not in the network in which nodes reach one another.
	HTTPOnFront bool
}

// Validate says what is wrong with a layout.
func (l Layout) Validate() error {
	if len(l.SMTP)+len(l.SMTPS)+len(l.HTTP) == 0 {
		return errors.New("nothing to serve: give --smtp, --smtps or --http an address")
	}
	if len(l.SMTPS) > 0 && l.SMTPSPort == 0 {
		return errors.New("--smtps needs --smtps-port: the port on which the nodes take SMTP over TLS, such as 465")
	}
	if l.HTTPMode != Proxy && l.HTTPMode != Passthrough {
		return fmt.Errorf("--http-mode is %q: use %s or %s", l.HTTPMode, Proxy, Passthrough)
	}
	if l.HTTPMode == Passthrough && l.HTTPCert != "" {
		return errors.New("--http-cert is for --http-mode proxy: with passthrough, clients see the nodes' own certificates")
	}
	if l.HTTPCert == "" && l.HTTPKey != "" {
		return errors.New("--http-key is given without --http-cert")
	}
	if l.Verifies() && l.CA == "" {
		return errors.New("the file with the cluster's CA certificate is missing: give --ca FILE, made by 'chainmail cluster ca'")
	}
	used := map[netip.AddrPort]string{}
	for _, s := range l.listeners() {
		for _, a := range s.at {
			if !a.IsValid() || a.Port() == 0 || a.Addr().Zone() != "" {
				return fmt.Errorf("%s is %q: write an IP address and a port, such as 192.0.2.10:25", s.flag, a)
			}
			if other, taken := used[a]; taken {
				return fmt.Errorf("%s and %s are both %s: give one of them another port", other, s.flag, a)
			}
			used[a] = s.flag
		}
	}
	for _, f := range [][2]string{{"--http-cert", l.HTTPCert}, {"--http-key", l.HTTPKey}, {"--ca", l.CA}} {
		if err := checkFile(f[0], f[1]); err != nil {
			return err
		}
	}
	return nil
}

// Verifies reports whether the balancer speaks TLS to the nodes for its clients,
// and so needs the cluster's CA.
func (l Layout) Verifies() bool { return len(l.HTTP) > 0 && l.HTTPMode == Proxy }

type listener struct {
	flag string
	at   []netip.AddrPort
}

func (l Layout) listeners() []listener {
	return []listener{{"--smtp", l.SMTP}, {"--smtps", l.SMTPS}, {"--http", l.HTTP}}
}

// plainFile are the names of files that need no thought about quoting in any of
// the files that are rendered.
var plainFile = regexp.MustCompile(`^/[A-Za-z0-9_@%+=:,./~ -]*$`)

func checkFile(flag, file string) error {
	if file != "" && !plainFile.MatchString(file) {
		return fmt.Errorf("%s is %q: name a file by its whole path, of letters, digits and . _ - / only", flag, file)
	}
	return nil
}

// reaches says why a node with these addresses cannot be reached.
func (l Layout) reaches(addresses ...Address) error {
	if !l.Source.IsValid() {
		return nil
	}
	for _, a := range addresses {
		if ip := a.IP(); ip.IsValid() && ip.Is4() != l.Source.Is4() {
			return fmt.Errorf("its address %s is of another family than --source-address %s", a, l.Source)
		}
	}
	return nil
}

// header is the comment at the top of a file.
func header(c Cluster, comment string) string {
	var b strings.Builder
	for _, line := range []string{
		"Made by chainmail lb for the cluster " + c.ID + ".",
		"It will be made again: change the flags or lb.yaml, and not the file.",
	} {
		b.WriteString(comment + " " + line + "\n")
	}
	return b.String()
}
