package lb

import (
	"errors"
	"fmt"
	"time"
)

// HAProxy is the HAProxy that will read the file.
type HAProxy struct {
	// User and Group that it becomes; empty: the one that starts it.
	User, Group string
	// Log is a syslog address or a file such as /dev/log or stdout.
	Log string
	// Stats is the socket for haproxy's own commands; empty: none.
	Stats string
}

// DebianHAProxy is that of Debian 12.
func DebianHAProxy() HAProxy {
	return HAProxy{User: "haproxy", Group: "haproxy", Log: "/dev/log", Stats: "/run/haproxy/admin.sock"}
}

// Validate says what is wrong.
func (h HAProxy) Validate() error {
	for _, name := range []string{h.User, h.Group} {
		if name != "" && !userPattern.MatchString(name) {
			return fmt.Errorf("HAProxy's user or group is %q: name one of this machine", name)
		}
	}
	if h.Log != "stdout" && h.Log != "stderr" {
		if err := checkFile("HAProxy's log", h.Log); err != nil {
			return err
		}
	}
	return checkFile("HAProxy's socket", h.Stats)
}

type haproxyData struct {
	nginxData
	HAProxy
}

// Ready and Live are what HAProxy asks the nodes: those without mail in mind
// stay for the console when they are full or draining.
func (haproxyData) Ready() string { return "/readyz" }

// Live: see Ready.
func (haproxyData) Live() string { return "/healthz" }

// RenderHAProxy is haproxy.cfg. HAProxy asks every node every second whether it
// takes mail, so little more than what is committed stands in the file: the
// members, who of them leaves the cluster, and whose SMTP port does not answer,
// since HAProxy asks the HTTP port. Nodes that are merely down, starting or full
// change nothing in it.
func RenderHAProxy(c Cluster, l Layout, h HAProxy) ([]byte, error) {
	if err := errors.Join(l.Validate(), h.Validate()); err != nil {
		return nil, err
	}
	if l.CA == "" {
		return nil, errors.New("HAProxy asks the nodes by TLS and needs the cluster's CA certificate: give --ca FILE, made by 'chainmail cluster ca'")
	}
	if l.HTTPKey != "" && l.HTTPKey != l.HTTPCert && l.HTTPKey != l.HTTPCert+".key" {
		return nil, fmt.Errorf("HAProxy reads the key from the certificate's own file, or from %s.key: put it there, and leave --http-key out", l.HTTPCert)
	}
	if len(c.Nodes) == 0 {
		return nil, ErrNobody
	}
	text, err := execute("haproxy.tmpl", haproxyData{
		nginxData{
			Cluster: c.committed().kept(), Layout: l,
			NodeName: NodeName, SessionCookie: SessionCookie, NodeCookie: NodeCookie,
			Connect: connectTime, MailIdle: mailIdle, WebIdle: webIdle, OldWorkers: oldWorkers,
		}, h,
	})
	if err != nil {
		return nil, err
	}
	return []byte(header(c, "#") + "\n" + text), nil
}

// committed is the cluster without what HAProxy sees by itself.
func (c Cluster) committed() Cluster {
	nodes := make([]Node, len(c.Nodes))
	for i, n := range c.Nodes {
		n.Web = In
		if n.Mail != Draining && n.Mail != NoSMTP {
			n.Mail = In
		}
		nodes[i] = n
	}
	c.Nodes = nodes
	return c
}

// Handshake is how long a client may take to send a request's header.
func (haproxyData) Handshake() time.Duration { return 30 * time.Second }

// SMTPSNodes are the nodes with the port that begins with TLS.
func (d haproxyData) SMTPSNodes() []Node {
	nodes := make([]Node, len(d.Nodes))
	for i, n := range d.Nodes {
		n.SMTP = n.SMTP.at(d.SMTPSPort)
		nodes[i] = n
	}
	return nodes
}
