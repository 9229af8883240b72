package membership

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"chainmail/membership/ring"
	"chainmail/node/api"
)

// ALPN is what members and joiners offer on a node's HTTP port, beside
// "http/1.1", so that it answers with the cluster's certificate. The server
// chooses "http/1.1": net/http hangs up on protocols that it does not know.
const ALPN = "chainmail/1"

// JoinPath is where a joiner asks, by POST.
const JoinPath = api.Prefix + "/cluster/join"

// JoinOptions describe a node that wants to join.
type JoinOptions struct {
	Dir       string // the cluster directory to make
	Name      string
	Role      ring.Role // empty: ring.Data
	Replace   bool      // take the place of the member of this name, whose disk is lost
	Peer      string    // HTTP address of any member, "host:port"
	Token     string
	Advertise ring.Addresses
	Version   string
	// Dial opens the connection to Peer. Nil: by TCP.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// joinTimeout bounds one attempt.
const joinTimeout = 30 * time.Second

// Join asks a member to let this node in, and makes Dir. The member is known by
// the CA that the token names, and nothing secret is said before that. A join
// that was interrupted, at any point, can be repeated with the same token.
//
// A directory that belongs to another cluster is an ErrExists. One that belongs
// to the same cluster, of a node that was removed or is to be replaced, is kept
// beside the new one.
func Join(ctx context.Context, o JoinOptions) error {
	if o.Role == "" {
		o.Role = ring.Data
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	t, err := parseToken(o.Token)
	if err != nil {
		return refuse(reasonToken, "%v", err)
	}
	if err := ring.CheckName(o.Name); err != nil {
		return err
	}
	if err := settleCluster(o.Dir); err != nil {
		return err
	}
	unlock, err := mayJoin(o.Dir, t)
	if err != nil {
		return err
	}
	defer unlock()
	key, err := joinKey(o.Dir+joinSuffix, t)
	if err != nil {
		return fmt.Errorf("preparing to join: %w: the data directory must be writable for the node's user", err)
	}
	a, err := askToJoin(ctx, o, t, key)
	if err != nil {
		return err
	}
	if err := makeJoined(o.Dir, t, a, key); err != nil {
		return err
	}
	return os.RemoveAll(o.Dir + joinSuffix)
}

// mayJoin looks at a directory that is there already, and keeps a node from
// starting in it meanwhile.
func mayJoin(dir string, t api.Secret) (unlock func(), err error) {
	if !complete(dir) {
		return func() {}, nil
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	s, err := readState(dir)
	if err == nil && s.CA.fingerprint() != t.CA {
		err = fail(ErrExists, "%s belongs to cluster %s with the members %s: a node cannot be in two; to give that membership up, stop the node and move %s away (its mail stays)",
			dir, s.View.Cluster, strings.Join(names(s.View), ", "), dir)
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	return func() { lock.Close() }, nil
}

// joinKey is the key to join with. It is on the disk before it is used: the
// cluster gives a second key no second certificate for the same token.
func joinKey(dir string, t api.Secret) (*ecdsa.PrivateKey, error) {
	path := filepath.Join(dir, t.Name()+".pem")
	b, err := os.ReadFile(path)
	if err == nil {
		if key, err := decodeKey(b); err == nil {
			return key, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	if b, err = encodeKey(key); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := writeFile(path, b); err != nil {
		return nil, err
	}
	return key, syncDir(filepath.Dir(dir))
}

func askToJoin(ctx context.Context, o JoinOptions, t api.Secret, key *ecdsa.PrivateKey) (admission, error) {
	csr, err := newCSR(key, o.Name)
	if err != nil {
		return admission{}, err
	}
	body, err := json.Marshal(api.JoinRequest{
		Token: o.Token, Name: o.Name, Role: string(o.Role), Replace: o.Replace, CSR: csr, Version: o.Version,
		Addresses: map[string]string{
			"smtp": o.Advertise.SMTP, "chain": o.Advertise.Chain, "gossip": o.Advertise.Gossip, "raft": o.Advertise.Raft, "http": o.Advertise.HTTP,
		},
	})
	if err != nil {
		return admission{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+o.Peer+JoinPath, bytes.NewReader(body))
	if err != nil {
		return admission{}, fmt.Errorf("%q is not the address of a member: give the host:port of its HTTP listener with --peer", o.Peer)
	}
	req.Header.Set("Content-Type", "application/json")
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dialCluster(ctx, o, network, addr, t)
		},
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return admission{}, fmt.Errorf("asking %s to join: %w: check that the address is the HTTP listener of a member, and that it runs; then repeat the same command", o.Peer, err)
	}
	defer resp.Body.Close()
	return readAdmission(resp, o.Peer)
}

// dialCluster connects to a member of the cluster whose CA the token names.
func dialCluster(ctx context.Context, o JoinOptions, network, addr string, t api.Secret) (net.Conn, error) {
	raw, err := o.Dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{ALPN, "http/1.1"},
		InsecureSkipVerify: true, // by the library's rules; ours follow
		VerifyConnection:   func(cs tls.ConnectionState) error { return signedBy(t.CA, cs) },
	})
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

// signedBy checks that the server has a certificate of the CA with this hash,
// which it sends along.
func signedBy(hash [sha256.Size]byte, cs tls.ConnectionState) error {
	for _, ca := range cs.PeerCertificates {
		if sha256.Sum256(ca.Raw) != hash {
			continue
		}
		if err := cs.PeerCertificates[0].CheckSignatureFrom(ca); err != nil {
			return fmt.Errorf("the certificate at this address was not signed by the cluster's CA: %w", err)
		}
		return nil
	}
	return errors.New("the node at this address is not a member of the cluster that made the token: check --peer, and that the token is of the same cluster")
}

func readAdmission(resp *http.Response, peer string) (admission, error) {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxControl))
	if err != nil {
		return admission{}, fmt.Errorf("reading the answer of %s: %w: repeat the same command", peer, err)
	}
	if resp.StatusCode != http.StatusOK {
		var e api.Error
		if json.Unmarshal(b, &e) != nil || e.Error == "" {
			return admission{}, fmt.Errorf("%s answered %s: check that --peer is the HTTP listener of a member", peer, resp.Status)
		}
		return admission{}, joinError(resp.StatusCode, e)
	}
	var a admission
	if err := json.Unmarshal(b, &a); err != nil {
		return admission{}, fmt.Errorf("the answer of %s cannot be read: %w: use the same version as the cluster", peer, err)
	}
	return a, nil
}

// joinError keeps the text of the member's error, and whether it is final.
func joinError(status int, e api.Error) error {
	text := e.Error
	if e.Hint != "" && !strings.Contains(text, e.Hint) {
		text += ": " + e.Hint
	}
	if status >= http.StatusInternalServerError {
		return &textError{ErrNoQuorum, text}
	}
	return &refusal{reasonRefused, text}
}

func parseLeaf(der []byte) (*x509.Certificate, error) { return x509.ParseCertificate(der) }

// makeJoined makes the cluster directory of the new member.
func makeJoined(dir string, t api.Secret, a admission, key *ecdsa.PrivateKey) error {
	if a.State.CA.fingerprint() != t.CA {
		return errors.New("the answer is of another cluster than the token: check --peer")
	}
	b, err := encodeState(a.State)
	if err == nil {
		_, err = decodeState(b)
	}
	if err != nil {
		return fmt.Errorf("the answer cannot be used: %w: use the same version as the cluster", err)
	}
	leaf, err := parseLeaf(a.Certificate)
	if err != nil {
		return fmt.Errorf("the certificate in the answer: %w", err)
	}
	if !slices.ContainsFunc(a.State.View.Members, func(m ring.Member) bool { return slices.Contains(m.Certificates, hexHash(leaf.Raw)) }) {
		return errors.New("the answer's view does not list this node's certificate: get a new token and repeat")
	}
	pem, err := encodeIdentity(a.Certificate, a.State.CA.Certificate, key)
	if err != nil {
		return err
	}
	if _, err := decodeIdentity(pem); err != nil {
		return fmt.Errorf("the certificate in the answer: %w", err)
	}
	return makeCluster(dir, a.State, pem, func(string) error { return nil })
}
