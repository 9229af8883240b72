package certs_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"chainmail/node/certs"
)

// write makes a certificate with this serial number.
func write(t *testing.T, dir string, serial int64, cert, key bool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	if cert {
		writeFile(t, filepath.Join(dir, "cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	if key {
		writeFile(t, filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	}
}

// writeFile replaces the file, as programs that renew certificates do.
func writeFile(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func serial(t *testing.T, config *tls.Config) int64 {
	t.Helper()
	cert, err := config.GetCertificate(&tls.ClientHelloInfo{})
	if err != nil {
		t.Fatal(err)
	}
	return cert.Leaf.SerialNumber.Int64()
}

func TestReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, 1, true, true)
		var log bytes.Buffer
		config, err := certs.Config(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		if config.MinVersion != tls.VersionTLS12 {
			t.Error("TLS older than 1.2 is allowed")
		}
		check := func(when string, want int64, errors int) {
			t.Helper()
			if got := serial(t, config); got != want {
				t.Errorf("%s: certificate %d, want %d", when, got, want)
			}
			if got := strings.Count(log.String(), "level=ERROR"); got != errors {
				t.Errorf("%s: %d errors logged, want %d: %s", when, got, errors, log.String())
			}
		}
		check("at first", 1, 0)
		write(t, dir, 2, true, true)
		check("within the second", 1, 0)
		time.Sleep(time.Second)
		check("after a renewal", 2, 0)

		write(t, dir, 3, true, false)
		for range 3 {
			time.Sleep(time.Second)
			check("certificate without its key", 2, 1)
		}
		if err := os.Remove(filepath.Join(dir, "key.pem")); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			time.Sleep(time.Second)
			check("key missing", 2, 2)
		}
		write(t, dir, 4, true, true)
		time.Sleep(time.Second)
		check("both there again", 4, 2)
	})
}

func TestErrorsSayWhatToDo(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, 1, true, true)
	cert, key, junk, none := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "junk.pem"), filepath.Join(dir, "none.pem")
	writeFile(t, junk, []byte("junk"))
	for _, tt := range []struct{ cert, key, want string }{
		{none, key, "cannot read the certificate DIR/none.pem: no such file or directory: name a PEM file that the node's user may read"},
		{cert, none, "cannot read the private key DIR/none.pem: no such file or directory: name a PEM file that the node's user may read"},
		{junk, key, "certificate DIR/junk.pem with key DIR/key.pem: failed to find any PEM data in certificate input: give a PEM certificate chain, the server's own first, and the PEM key that belongs to it"},
		{key, cert, "certificate DIR/key.pem with key DIR/cert.pem: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been switched: give a PEM certificate chain, the server's own first, and the PEM key that belongs to it"},
	} {
		_, err := certs.Config(tt.cert, tt.key, nil)
		if err == nil {
			t.Errorf("%s, %s: no error", tt.cert, tt.key)
		} else if got := strings.ReplaceAll(err.Error(), dir, "DIR"); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
}
