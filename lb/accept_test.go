package lb_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chainmail/archive/mail/mailtest"
	"chainmail/lb"
)

func program(t *testing.T, name, debianPackage string) string {
	t.Helper()
	return mailtest.Program(t, name, debianPackage)
}

func missing(t *testing.T, debianPackage string) { t.Helper(); mailtest.Missing(t, debianPackage) }

const streamModule = "/usr/lib/nginx/modules/ngx_stream_module.so"

// here makes a configuration loadable on this machine: what it writes goes into
// dir, its certificates exist, and it binds no address that the machine lacks.
func here(t *testing.T, text, dir string) string {
	t.Helper()
	pair := certificate(t)
	if err := os.Mkdir(filepath.Join(dir, "temp"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ca.pem", "console.pem"} {
		if err := os.WriteFile(filepath.Join(dir, name), pair, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return strings.NewReplacer(
		"/etc/chainmail/lb/", dir+"/", "/var/log/nginx/", dir+"/", "/run/nginx.pid", dir+"/nginx.pid", "/run/haproxy/", dir+"/",
		"user www-data;\n", "",
		"192.0.2.100:", "127.0.0.1:", "[2001:db8::100]:", "[::1]:",
	).Replace(text)
}

func accepted(t *testing.T, text string, cmd *exec.Cmd) {
	t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil || bytes.Contains(out, []byte("[warn]")) || bytes.Contains(out, []byte("[WARNING]")) {
		t.Errorf("%s: %v\n%s\n%s", cmd, err, out, text)
	}
}

func acceptedByNginx(t *testing.T, text string) {
	t.Helper()
	nginx := program(t, "nginx", "nginx")
	if _, err := os.Stat(streamModule); err != nil {
		missing(t, "libnginx-mod-stream")
	}
	dir := t.TempDir()
	text = here(t, text, dir)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	accepted(t, text, exec.Command(nginx, "-t", "-p", dir, "-e", "stderr", "-c", file))
}

func acceptedByHAProxy(t *testing.T, text string) {
	t.Helper()
	haproxy := program(t, "haproxy", "haproxy")
	dir := t.TempDir()
	text = here(t, text, dir)
	file := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	accepted(t, text, exec.Command(haproxy, "-c", "-f", file))
}

// acceptedByKeepalived lets root run the check: for any other user, the test of a
// configuration by keepalived 2.2.7 kills itself (it restores the signal of its
// parent's death, and takes itself for an orphan).
func acceptedByKeepalived(t *testing.T, text string) {
	t.Helper()
	keepalived := program(t, "keepalived", "keepalived")
	dir := t.TempDir()
	text = strings.NewReplacer(
		"/usr/bin/chainmail lb check --smtp 192.0.2.10:25", "/bin/true", "script_user nobody", "script_user root",
		"interface eth0", "interface "+card(t), "dev eth0", "dev "+card(t),
	).Replace(text)
	file, log := filepath.Join(dir, "keepalived.conf"), filepath.Join(dir, "log")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(keepalived, "--config-test="+log, "-f", file)
	out, err := cmd.CombinedOutput()
	if said, _ := os.ReadFile(log); err != nil || len(said) > 0 { // no file: nothing to say
		t.Errorf("%s: %v\n%s%s\n%s", cmd, err, out, said, text)
	}
}

// acceptedByBIND adds what every zone has, and lets names be checked as hosts'.
func acceptedByBIND(t *testing.T, text string) {
	t.Helper()
	check := program(t, "named-checkzone", "bind9-utils")
	file := filepath.Join(t.TempDir(), "zone")
	text = "@ 60 IN SOA ns1 hostmaster 1 3600 600 604800 60\n@ 60 IN NS ns1\nns1 60 IN A 192.0.2.53\n" + text
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-i", "local-sibling"} // asks no name server
	for _, check := range []string{"-k", "-m", "-M", "-n", "-r", "-S"} {
		args = append(args, check, "fail")
	}
	cmd := exec.Command(check, append(args, "archive.example.com", file)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s\n%s", cmd, err, out, text)
	}
}

// card is a network interface of this machine, which VRRP may use.
func card(t *testing.T) string {
	t.Helper()
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		if i.Flags&net.FlagLoopback == 0 {
			return i.Name
		}
	}
	t.Skip("NOT CHECKED by the real program: this machine has no network interface but loopback")
	return ""
}

// certificate is a certificate that signed itself, and its key.
func certificate(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"archive.example.com", lb.NodeName}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret})...)
}
