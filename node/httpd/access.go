package httpd

import (
	"fmt"
	"net/http"
)

// access is the least right that a route asks for.
type access int

const (
	open     access = iota // anybody who reaches the listener
	joiner                 // a connection by the cluster's TLS, with or without a certificate
	anyToken               // a bearer token of any scope, a member's certificate, or the admin socket
	token                  // a bearer token that may read mail, a member's certificate, or the admin socket
	peer                   // a member's certificate, or the admin socket
	admin                  // the admin socket only
)

// caller is what is known of who asks.
type caller struct {
	request *http.Request
	trusted bool  // over the admin socket
	cluster bool  // by the cluster's TLS
	peer    bool  // with the certificate of a member
	problem error // why the certificate is of no use
}

// caller finds out who asks. Certificates are looked at anew for each request:
// a member that was removed has no right from then on, whatever connections
// it kept open.
func (s *Server) caller(r *http.Request, trusted bool) caller {
	c := caller{request: r, trusted: trusted}
	if r.TLS == nil || r.TLS.NegotiatedProtocol != Protocol {
		return c
	}
	c.cluster = true
	if len(r.TLS.PeerCertificates) > 0 {
		_, c.problem = s.opts.Peer(*r.TLS)
		c.peer = c.problem == nil
	}
	return c
}

// allow refuses a caller who lacks the right that the route asks for.
func (s *Server) allow(rt route, c caller) error {
	if c.trusted || rt.access == open || rt.access == joiner && c.cluster || c.peer && rt.access <= peer {
		return nil
	}
	if c.problem != nil {
		return &StatusError{
			http.StatusForbidden, fmt.Sprintf("the certificate of the node that asks is not one of a member: %v", c.problem),
			"see with 'chainmail status' who is one; a node that was removed joins again with 'chainmail join-node'",
		}
	}
	what := c.request.Method + " " + c.request.URL.Path
	switch rt.access {
	case joiner, peer:
		return &StatusError{
			http.StatusForbidden, fmt.Sprintf("%s is for the nodes of the cluster, by their TLS (ALPN %s)", what, Protocol),
			"people use the chainmail command on the node's machine",
		}
	default:
		if !c.peer {
			t, err := s.authenticate(c.request)
			if err != nil {
				return err
			}
			if rt.access == anyToken || rt.access == token {
				return permits(t, rt.access)
			}
		}
		return &StatusError{
			http.StatusForbidden, what + " is for the administrator of the machine: an API token only reads",
			"use the chainmail command on the node's machine, or its admin socket",
		}
	}
}
