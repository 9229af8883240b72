package membership

import (
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"chainmail/membership/ring"
)

// ServerTLS is for listeners that members and joiners connect to: it presents
// the node's certificate, and accepts clients without a certificate, or with
// that of a current member. PeerOf tells who it is.
func (m *Membership) ServerTLS() *tls.Config {
	c := m.baseTLS()
	c.ClientAuth = tls.RequestClientCert
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return nil
		}
		_, err := m.PeerOf(cs)
		return err
	}
	return c
}

// PublicTLS is for listeners that people and balancers connect to: it presents
// the node's certificate, which whoever has the cluster's CA verifies by the
// name api.NodeName, and asks for none. Balancers in the field still speak TLS
// 1.2.
func (m *Membership) PublicTLS() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: m.baseTLS().GetCertificate}
}

// CA is the certificate of the cluster's authority, in PEM.
func (m *Membership) CA() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: m.ca.Raw})
}

// memberTLS is for listeners that only members may connect to. A client that
// asks only how it stands may have been one: see standing.
func (m *Membership) memberTLS() *tls.Config {
	c := m.baseTLS()
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Contains(hello.SupportedProtos, standingALPN) {
			return m.standingTLS(), nil
		}
		return nil, nil //nolint:nilnil // this configuration serves
	}
	c.ClientAuth = tls.RequireAnyClientCert
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		_, err := m.PeerOf(cs)
		return err
	}
	return c
}

// ClientTLS is for a connection to a member: the server must be that one.
func (m *Membership) ClientTLS(peer string) *tls.Config {
	c := m.baseTLS()
	c.ServerName = peer
	c.InsecureSkipVerify = true // by the library's rules; ours are stricter, and follow
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		name, err := m.PeerOf(cs)
		if err == nil && name != peer {
			err = fmt.Errorf("the node at this address is %s, not %s: correct the addresses that the two advertise", name, peer)
		}
		return err
	}
	return c
}

func (m *Membership) baseTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Every handshake proves membership anew.
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &m.identity.Load().tls, nil
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &m.identity.Load().tls, nil
		},
	}
}

// PeerOf is the name of the member at the other end of a connection, by the
// view of this moment: ask again when the view changed. Who is no member, or
// not any more, is an ErrNotMember.
func (m *Membership) PeerOf(cs tls.ConnectionState) (string, error) {
	member, err := m.peerOf(cs)
	return member.Name, err
}

func (m *Membership) peerOf(cs tls.ConnectionState) (ring.Member, error) {
	if len(cs.PeerCertificates) == 0 {
		return ring.Member{}, &textError{ErrNotMember, "the peer has no certificate: only members may do this"}
	}
	member, err := memberOf(m.View(), m.ca, cs.PeerCertificates[0])
	if err != nil && !errors.Is(err, ErrNotMember) {
		err = &textError{ErrNotMember, err.Error()}
	}
	return member, err
}
