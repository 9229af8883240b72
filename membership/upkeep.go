package membership

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"chainmail/membership/ring"
)

// Pauses of a node's care for its own entry in the view.
const (
	upkeepEvery = 5 * time.Second
	// renewPatience is how long a new certificate waits until all live members
	// know it. Those that do not yet accept it too: see memberOf.
	renewPatience = 10 * time.Second
)

// runUpkeep keeps this node's entry in the view true: its addresses, version
// and certificate.
func (m *Membership) runUpkeep(ctx context.Context) {
	for ctx.Err() == nil {
		changed := m.Changed()
		if member, ok := m.View().Member(m.name); ok && member.ID == m.id && (m.Quorum() || m.moved()) {
			if err := m.upkeep(ctx, member); err != nil && ctx.Err() == nil {
				m.log.Debug("entry of this node in the view not brought up to date", "err", err)
			}
		}
		timer := time.NewTimer(upkeepEvery)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-changed:
			select { // changes come in bursts
			case <-ctx.Done():
			case <-time.After(retryAfter):
			}
		}
		timer.Stop()
	}
}

func (m *Membership) upkeep(ctx context.Context, member ring.Member) error {
	a, version := member.Addresses, m.version()
	if m.moved() {
		a = *m.advertised.Load()
	}
	if a != member.Addresses || version != member.Version {
		if _, err := m.updateSelf(ctx, a, version); err != nil {
			return err
		}
	}
	return m.renewIdentity(ctx, member)
}

// renewIdentity replaces this node's certificate when a rotation asks for it,
// and ends what was left of a replacement that was interrupted:
//
//	the new key is on the disk (next.pem)
//	the leader signs it; the view lists both certificates
//	all live members know that; node.pem is replaced, and the new one used
//	the view lists the new one only
func (m *Membership) renewIdentity(ctx context.Context, member ring.Member) error {
	s, id := m.current.Load(), m.identity.Load()
	if id.signed < s.Renew {
		return m.replaceIdentity(ctx, *id)
	}
	if print := id.fingerprint(); len(member.Certificates) > 1 && slices.Contains(member.Certificates, print) {
		_, err := m.change(ctx, command{Renewed: &renewed{Name: m.name, ID: m.id, Certificates: []string{print}}})
		return err
	}
	return nil
}

func (m *Membership) replaceIdentity(ctx context.Context, old identity) error {
	path := filepath.Join(m.dir, nextFile)
	key, err := m.nextKey(path)
	if err != nil {
		return err
	}
	csr, err := newCSR(key, m.name)
	if err != nil {
		return err
	}
	a, err := m.ask(ctx, controlRequest{Renew: &renewRequest{CSR: csr, InUse: old.fingerprint()}})
	if err != nil {
		return err
	}
	pem, err := encodeIdentity(a.Result.Certificate, m.current.Load().CA.Certificate, key)
	if err != nil {
		return err
	}
	next, err := decodeIdentity(pem)
	if err != nil {
		return fmt.Errorf("the new certificate: %w", err)
	}
	m.awaitReached(ctx, a.Result.Epoch)
	if err := writeFile(filepath.Join(m.dir, nodeFile), pem); err != nil {
		return err
	}
	m.identity.Store(&next)
	m.log.Info("certificate replaced", "signed_at_epoch", uint64(next.signed))
	return removeFile(path)
}

func (m *Membership) nextKey(path string) (*ecdsa.PrivateKey, error) {
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
	return key, writeFile(path, b)
}

// awaitReached waits a while until all live members know an epoch.
func (m *Membership) awaitReached(ctx context.Context, e ring.Epoch) {
	ctx, cancel := context.WithTimeout(ctx, renewPatience)
	defer cancel()
	for {
		changed := m.Changed()
		if m.reached(e) {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
