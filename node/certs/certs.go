// Package certs keeps a TLS certificate in step with its files, so that a
// renewal needs no restart.
package certs

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"
)

// Config returns a server's TLS configuration (TLS 1.2 and newer) with the
// certificate chain and key of two PEM files, which are read again when they
// change. A new pair that does not load is logged once, and the old one stays
// in use: a renewal replaces two files, and between the two they do not match.
//
// The errors name the file and say what to do. A nil logger is silent.
func Config(certFile, keyFile string, log *slog.Logger) (*tls.Config, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	p := &pair{certFile: certFile, keyFile: keyFile, log: log}
	seen, err := p.stat()
	if err != nil {
		return nil, err
	}
	if p.cert, err = p.load(); err != nil {
		return nil, err
	}
	p.seen, p.checked = seen, time.Now()
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return p.current(), nil },
	}, nil
}

// pair is a certificate and its files.
type pair struct {
	certFile, keyFile string
	log               *slog.Logger

	mu      sync.Mutex
	cert    *tls.Certificate
	seen    version   // of the files when cert was loaded
	checked time.Time // when the files were looked at last
	problem string    // why the files do not load now; logged
}

// version tells whether the files changed.
type version struct{ cert, key fs.FileInfo }

func (v version) equal(w version) bool { return sameFile(v.cert, w.cert) && sameFile(v.key, w.key) }

func sameFile(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// current is the certificate for a handshake that begins now. The files are
// looked at once a second at most, whatever the number of handshakes.
func (p *pair) current() *tls.Certificate {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if now.Sub(p.checked) < time.Second {
		return p.cert
	}
	p.checked = now
	seen, err := p.stat()
	if err == nil && p.seen.equal(seen) {
		p.problem = ""
		return p.cert
	}
	var cert *tls.Certificate
	if err == nil {
		// Tried again every second while it fails: what is wrong may be
		// something that does not show in the files' times, such as a mode.
		cert, err = p.load()
	}
	if err != nil {
		if err.Error() != p.problem {
			p.problem = err.Error()
			p.log.Error("new certificate not loaded, the old one stays in use", slog.Any("err", err))
		}
		return p.cert
	}
	p.cert, p.seen, p.problem = cert, seen, ""
	p.log.Info("certificate loaded", slog.String("file", p.certFile), slog.Time("expires", cert.Leaf.NotAfter))
	return p.cert
}

func (p *pair) stat() (version, error) {
	cert, err := os.Stat(p.certFile)
	if err != nil {
		return version{}, unreadable("certificate", p.certFile, err)
	}
	key, err := os.Stat(p.keyFile)
	if err != nil {
		return version{}, unreadable("private key", p.keyFile, err)
	}
	return version{cert, key}, nil
}

func (p *pair) load() (*tls.Certificate, error) {
	certPEM, err := os.ReadFile(p.certFile)
	if err != nil {
		return nil, unreadable("certificate", p.certFile, err)
	}
	keyPEM, err := os.ReadFile(p.keyFile)
	if err != nil {
		return nil, unreadable("private key", p.keyFile, err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %s: give a PEM certificate chain, the server's own first, and the PEM key that belongs to it",
			p.certFile, p.keyFile, strings.TrimPrefix(err.Error(), "tls: "))
	}
	return &cert, nil
}

func unreadable(what, file string, err error) error {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		err = pathErr.Err // the path is named anyway
	}
	return fmt.Errorf("cannot read the %s %s: %w: name a PEM file that the node's user may read", what, file, err)
}
