package membership

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strconv"
	"strings"
	"time"

	"chainmail/membership/ring"
	"chainmail/node/api"
)

// Certificates are valid at any time: the view ends them, not the clock, so
// that a node whose clock is wrong still reaches its peers.
var (
	notBefore = time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC)
	notAfter  = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) // RFC 5280 4.1.2.5: no end
)

// authority signs the certificates of a cluster's members.
type authority struct {
	Certificate []byte `json:"certificate"` // DER
	Key         []byte `json:"key"`         // PKCS #8, DER
}

func newAuthority(cluster string) (authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return authority{}, err
	}
	template := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: "chainmail cluster " + cluster},
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return authority{}, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	return authority{Certificate: der, Key: keyDER}, err
}

func newSerial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	b[0] &= 0x7f // positive, as RFC 5280 wants it
	return new(big.Int).SetBytes(b)
}

// fingerprint is how the CA is named in a join token.
func (a authority) fingerprint() [sha256.Size]byte { return sha256.Sum256(a.Certificate) }

func (a authority) certificate() (*x509.Certificate, error) {
	return x509.ParseCertificate(a.Certificate)
}

// sign makes the certificate of a member for the key of a CSR. epoch is that
// of the view it was signed in.
func (a authority) sign(csrDER []byte, name, id string, epoch ring.Epoch) ([]byte, error) {
	csr, err := parseCSR(csrDER)
	if err != nil {
		return nil, err
	}
	ca, err := a.certificate()
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(a.Key)
	if err != nil {
		return nil, errors.New("this node does not have the CA's key yet: try again in a few seconds")
	}
	template := &x509.Certificate{
		SerialNumber: newSerial(),
		Subject:      pkix.Name{CommonName: name},
		DNSNames:     []string{name, api.NodeName},
		URIs:         []*url.URL{memberURI(id, epoch)},
		NotBefore:    notBefore,
		NotAfter:     notAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	return x509.CreateCertificate(rand.Reader, template, ca, csr.PublicKey, key)
}

func parseCSR(der []byte) (*x509.CertificateRequest, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, fmt.Errorf("the certificate request cannot be read: %w", err)
	}
	if _, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok {
		return nil, errors.New("the certificate request has a key of another kind than ECDSA")
	}
	return csr, nil
}

// csrKey names the key of a CSR: the same for every request made with it.
func csrKey(der []byte) (string, error) {
	csr, err := parseCSR(der)
	if err != nil {
		return "", err
	}
	return hexHash(csr.RawSubjectPublicKeyInfo), nil
}

func hexHash(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// memberScheme begins the URI that names a member in its certificate:
// chainmail:<member ID>:<epoch at which it was signed>.
const memberScheme = "chainmail"

func memberURI(id string, epoch ring.Epoch) *url.URL {
	return &url.URL{Scheme: memberScheme, Opaque: id + ":" + strconv.FormatUint(uint64(epoch), 10)}
}

// certified reads from a certificate whom it was signed for, and when.
func certified(cert *x509.Certificate) (id string, signed ring.Epoch, ok bool) {
	if len(cert.URIs) != 1 || cert.URIs[0].Scheme != memberScheme {
		return "", 0, false
	}
	id, epoch, ok := strings.Cut(cert.URIs[0].Opaque, ":")
	n, err := strconv.ParseUint(epoch, 10, 64)
	return id, ring.Epoch(n), ok && err == nil
}

// memberOf finds the member whose certificate this is. It must be signed by
// the CA, and the view must list it; except that a certificate signed after
// the view was made cannot be listed in it yet, and belongs to the member
// whose ID it carries. Without that exception a node that slept through a
// rotation of the keys would trust nobody, and nobody could tell it the news.
func memberOf(view ring.View, ca *x509.Certificate, cert *x509.Certificate) (ring.Member, error) {
	if err := signedByCA(ca, cert); err != nil {
		return ring.Member{}, err
	}
	print := hexHash(cert.Raw)
	id, signed, ok := certified(cert)
	for _, m := range view.Members {
		if m.ID != id || !ok {
			continue
		}
		for _, known := range m.Certificates {
			if known == print {
				return m, nil
			}
		}
		if signed > view.Epoch {
			return m, nil
		}
	}
	return ring.Member{}, fail(ErrNotMember, "the certificate of %s is not that of a member at epoch %d: the node was removed, replaced, or has not joined yet", cert.Subject.CommonName, view.Epoch)
}

// signedByCA checks that a certificate was once given to a member; whether it
// still is one is another question.
func signedByCA(ca, cert *x509.Certificate) error {
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	if _, err := cert.Verify(x509.VerifyOptions{
		Roots:       roots,
		CurrentTime: notBefore.AddDate(1, 0, 0), // clocks do not matter here
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}); err != nil {
		return fmt.Errorf("the certificate of %q was not signed by this cluster's CA", cert.Subject.CommonName)
	}
	return nil
}

// identity is a node's certificate and key.
type identity struct {
	tls    tls.Certificate // the leaf, then the CA, so that a joiner can check it by the CA's hash
	id     string
	signed ring.Epoch
}

func (i identity) fingerprint() string { return hexHash(i.tls.Leaf.Raw) }

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func newCSR(key *ecdsa.PrivateKey, name string) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
}

const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"
)

// encodeIdentity is the content of node.pem.
func encodeIdentity(leaf, ca []byte, key *ecdsa.PrivateKey) ([]byte, error) {
	k, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	for _, der := range [][]byte{leaf, ca} {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der}))
	}
	b.Write(k)
	return b.Bytes(), nil
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}

func decodeKey(b []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != pemKey {
		return nil, errors.New("no private key in PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	k, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("not an ECDSA key")
	}
	return k, nil
}

func decodeIdentity(b []byte) (identity, error) {
	pair, err := tls.X509KeyPair(b, b)
	if err != nil {
		return identity{}, err
	}
	id, signed, ok := certified(pair.Leaf)
	if !ok {
		return identity{}, errors.New("not the certificate of a cluster's member")
	}
	return identity{tls: pair, id: id, signed: signed}, nil
}
