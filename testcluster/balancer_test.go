package testcluster_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"chainmail/node/api"
	"chainmail/testcluster/support"
)

// nginxConf is a TCP balancer that tells the node who its clients are.
const nginxConf = `load_module %[1]s;
pid %[2]s/pid;
daemon off;
master_process off;
events {}
stream {
	server {
		listen %[3]s;
		proxy_pass %[4]s;
		proxy_protocol on;
	}
}
`

const nginxStream = "/usr/lib/nginx/modules/ngx_stream_module.so"

// TestPeerNginx: behind a balancer that sends the PROXY protocol, receipts show
// the clients and not the balancer.
func TestPeerNginx(t *testing.T) {
	nginx := lookFor(t, "nginx", "nginx")
	if _, err := os.Stat(nginxStream); err != nil {
		missing(t, "libnginx-mod-stream")
	}
	c, _ := peerConfig(t)
	n := support.Start(t, c)
	dir, front := t.TempDir(), support.FreeAddr(t)
	file := filepath.Join(dir, "nginx.conf")
	writeFile(t, file, fmt.Sprintf(nginxConf, nginxStream, dir, front, n.Addrs()["balanced"]))
	background(t, exec.Command(nginx, "-p", dir, "-c", file, "-e", "stderr"))
	eventually(t, 10*time.Second, "nginx listens", func() bool {
		conn, err := net.Dial("tcp", front)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	for _, name := range []string{"first", "second"} {
		client := support.Dial(t, front, "EHLO "+name+".example")
		msg := client.Data(crlf(peerText(name+" client of nginx")), 2, 1)
		expectReceipt(t, receipts(t, n, msg)[0], api.Receipt{
			From: "a@example.com", To: []string{"r0@example.com", "r1@example.com"},
			Client: client.Conn.LocalAddr().String(), Helo: name + ".example", Connector: "balanced",
		})
	}
}

// background runs a program until the test ends.
func background(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // says only that it was killed
	})
}

// eventually asks again and again until the condition holds.
func eventually(t *testing.T, patience time.Duration, what string, holds func() bool) {
	t.Helper()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	deadline := time.After(patience)
	for !holds() {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}
