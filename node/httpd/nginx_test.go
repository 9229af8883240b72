package httpd_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"chainmail/membership"
	"chainmail/membership/ring"
	"chainmail/node/httpd"
)

// member is the place of a node in a new cluster, of which nothing runs.
func member(t *testing.T, name string) *membership.Membership {
	t.Helper()
	dir := filepath.Join(shortDir(t), "cluster")
	a := ring.Addresses{SMTP: "h:25", Chain: "h:1", Gossip: "h:2", Raft: "h:3", HTTP: "h:4"}
	if err := membership.Create(dir, membership.CreateOptions{Name: name, Advertise: a, Version: "1"}); err != nil {
		t.Fatal(err)
	}
	m, err := membership.Open(membership.Options{Dir: dir, Bind: membership.Bind{Gossip: "127.0.0.1:0", Raft: "127.0.0.1:0"}, Version: "1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

const nginxConfig = `
daemon off; master_process off; pid nginx.pid; error_log error.log info;
events {}
http {
	access_log off; client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
	server {
		listen %s;
		location / {
			proxy_pass https://%s;
			proxy_ssl_trusted_certificate ca.pem;
			proxy_ssl_name node.chainmail.internal;
			proxy_ssl_server_name on;
			proxy_ssl_verify on;
			proxy_ssl_protocols %s;
			proxy_http_version 1.1;
			proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
		}
	}
}
`

// nginx runs in front of a node, verifies it by this CA, and is asked with a
// claim of the client's own about its address.
func nginx(t *testing.T, program, backend, protocol string, ca []byte) (int, string) {
	t.Helper()
	dir := shortDir(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	for name, text := range map[string]string{"ca.pem": string(ca), "nginx.conf": fmt.Sprintf(nginxConfig, addr, backend, protocol)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program, "-p", dir, "-c", "nginx.conf", "-e", "error.log")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/readyz", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Forwarded-For", "203.0.113.66")
		resp, err := client.Do(req)
		if err == nil {
			defer resp.Body.Close()
			_, _ = io.Copy(io.Discard, resp.Body)
			log, _ := os.ReadFile(filepath.Join(dir, "error.log"))
			return resp.StatusCode, string(log)
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(dir, "error.log"))
			t.Fatalf("nginx does not answer: %v\n%s", err, log)
		}
	}
}

// TestNginxVerifiesNodes: the real nginx takes a node's certificate by the
// cluster's CA, and no other cluster's; what the client claims of its address
// is not believed, and what nginx says of it is.
func TestNginxVerifiesNodes(t *testing.T) {
	program, err := exec.LookPath("nginx")
	if err != nil {
		if program, err = exec.LookPath("/usr/sbin/nginx"); err != nil {
			t.Skip("nginx is not installed: apt-get install nginx")
		}
	}
	own, other := member(t, "a"), member(t, "a")
	for _, protocol := range []string{"TLSv1.2", "TLSv1.3"} {
		clients := seen(t, func(o *httpd.Options) {
			o.PublicTLS = own.PublicTLS()
			o.Balancer = func(a netip.Addr) bool { return a.IsLoopback() }
		}, func(n *node) {
			backend := strings.TrimPrefix(n.tcp, "http://")
			if code, log := nginx(t, program, backend, protocol, own.CA()); code != http.StatusOK {
				t.Errorf("%s: status %d\n%s", protocol, code, log)
			}
			if code, log := nginx(t, program, backend, protocol, other.CA()); code != http.StatusBadGateway || !strings.Contains(log, "certificate verify error") {
				t.Errorf("%s, the CA of another cluster: status %d\n%s", protocol, code, log)
			}
		})
		if len(clients) != 1 || clients[0] != "127.0.0.1" {
			t.Errorf("the node sees the clients %q", clients)
		}
	}
}
