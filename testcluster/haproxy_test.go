package testcluster_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"chainmail/node"
	"chainmail/node/api"
	"chainmail/testcluster/local"
	"chainmail/testcluster/support"
)

// balancerAddress is where the balancer's own connections come from: what comes
// to the nodes from 127.0.0.1 is not the balancer's.
const balancerAddress = "127.0.0.2"

// haproxy is an HAProxy that runs.
type haproxy struct {
	program string
	config  string
	log     string
	cmd     *exec.Cmd
	ended   chan struct{}
}

// newHAProxy is an HAProxy that does not run yet.
func newHAProxy(t *testing.T, log string) *haproxy {
	t.Helper()
	return &haproxy{
		program: lookFor(t, "haproxy", "haproxy"), log: log, ended: make(chan struct{}),
		config: filepath.Join(support.ShortDir(t), "haproxy.cfg"),
	}
}

// flags make it one that meets no other on the machine.
func (h *haproxy) flags() []string {
	user := "none"
	if os.Geteuid() == 0 {
		user = "haproxy"
	}
	return []string{"--haproxy-user", user, "--haproxy-log", "stdout", "--haproxy-socket", filepath.Join(filepath.Dir(h.config), "admin.sock")}
}

// start runs it as Debian's service does, until the end of the test.
func (h *haproxy) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(h.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	h.cmd = exec.Command(h.program, "-W", "-f", h.config)
	h.cmd.Stdout, h.cmd.Stderr = log, log
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // its workers too, in which the end of the master may come late
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = h.cmd.Wait() // ProcessState tells
		close(h.ended)
	}()
	t.Cleanup(func() {
		_ = h.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-h.ended:
		case <-time.After(10 * time.Second):
			t.Error("HAProxy does not end")
		}
		_ = syscall.Kill(-h.cmd.Process.Pid, syscall.SIGKILL) // nobody is left, most times
	})
}

// chainmail is a command of the real program that keeps the settings of this
// machine's own balancer out.
func chainmail(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	none := filepath.Join(t.TempDir(), "lb.yaml")
	writeFile(t, none, "")
	return exec.CommandContext(t.Context(), support.Program(t), append(args, "--config", none)...)
}

// introduce makes a balancer known to all nodes, and gives it a token.
func (f *front) introduce(address string) (tokenFile string) {
	f.t.Helper()
	if _, err := f.Run(f.t.Context(), "a", "cluster", "set", "balancers="+address); err != nil {
		f.t.Fatal(err)
	}
	for _, name := range f.names {
		c := f.Client(name)
		eventually(f.t, 20*time.Second, name+" knows the balancer", func() bool {
			view, err := c.Cluster(f.t.Context())
			return err == nil && len(view.Policies.Balancers) > 0
		})
		c.Close()
	}
	secret, err := f.Run(f.t.Context(), "a", "token", "api", "--name", "lb", "--scope", "cluster")
	if err != nil {
		f.t.Fatal(err)
	}
	tokenFile = filepath.Join(f.t.TempDir(), "token")
	writeFile(f.t, tokenFile, secret)
	return tokenFile
}

// startHAProxy puts HAProxy in front, with a file that "chainmail lb haproxy" made.
func (f *front) startHAProxy() {
	f.t.Helper()
	h := newHAProxy(f.t, f.LogFile(local.Balancer))
	flags := append(h.flags(),
		"--token-file", f.introduce(balancerAddress), "--source-address", balancerAddress,
		"--smtp", f.Addr(local.Balancer, "smtp"), "--http", f.Addr(local.Balancer, "http"))
	for _, name := range f.names {
		flags = append(flags, "--peer", f.Addr(name, "http"))
	}
	if out, err := chainmail(f.t, append([]string{"lb", "haproxy", "-o", h.config}, flags...)...).CombinedOutput(); err != nil || len(out) > 0 {
		f.t.Fatalf("lb haproxy: %v\n%s", err, out)
	}
	h.start(f.t)
	eventually(f.t, 20*time.Second, "the balancer greets", func() bool { return f.greeting(f.t.Context()) == nil })
	f.follow = func() { f.watchHAProxy(h, flags) }
}

// watchHAProxy keeps its file as the cluster is.
func (f *front) watchHAProxy(h *haproxy, flags []string) {
	f.t.Helper()
	watch := chainmail(f.t, append([]string{
		"lb", "watch", "--out", "haproxy=" + h.config,
		"--check", h.program + " -c -q -f {}", "--reload", fmt.Sprintf("kill -USR2 %d", h.cmd.Process.Pid),
	}, flags...)...)
	log, err := os.OpenFile(f.LogFile(local.Balancer), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	defer log.Close()
	watch.Stdout, watch.Stderr = log, log
	if err := watch.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		_ = watch.Process.Signal(syscall.SIGTERM)
		if err := watch.Wait(); err != nil && f.t.Context().Err() == nil {
			f.t.Errorf("lb watch: %v", err)
		}
	})
}

func TestHAProxy(t *testing.T) {
	lookFor(t, "haproxy", "haproxy")
	f := newNodes(t, 3)
	f.startHAProxy()
	f.takesMail(t, "")
}

func TestHAProxyHTTP(t *testing.T) {
	lookFor(t, "haproxy", "haproxy")
	f := newNodes(t, 3)
	f.startHAProxy()
	f.sticks(t)
}

// awaitAddress waits until the cluster knows which port the system gave to a node,
// and returns its SMTP port.
func awaitAddress(t *testing.T, n support.Node) (port string) {
	t.Helper()
	eventually(t, 10*time.Second, "the cluster knows the node's address", func() bool {
		view, err := n.Cluster(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, port, err = net.SplitHostPort(view.Members[0].Addresses["smtp"]); err != nil {
			t.Fatal(err)
		}
		return port != "0"
	})
	return port
}

// TestHAProxyTLS: clients may begin with TLS, for mail, which the node ends, and
// for HTTP, which HAProxy ends.
func TestHAProxyTLS(t *testing.T) {
	h := newHAProxy(t, filepath.Join(t.TempDir(), "log"))
	c := config(t)
	dir := filepath.Dir(c.DataDir)
	cert, key := makeCertificate(t, dir)
	secret, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	public, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	both := filepath.Join(dir, "both.pem")
	writeFile(t, both, string(public)+string(secret))
	implicit := support.FreeAddr(t)
	c.Connectors = append(c.Connectors, node.Connector{Name: "implicit", Listen: implicit, TLS: node.TLS{Mode: node.TLSImplicit, Cert: cert, Key: key}})
	n := support.Start(t, c.Complete())
	awaitAddress(t, n)
	balancers := []string{balancerAddress}
	if _, err := n.SetPolicies(t.Context(), api.PolicyChange{Balancers: &balancers}); err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(implicit)
	if err != nil {
		t.Fatal(err)
	}
	smtp, smtps, web := support.FreeAddr(t), support.FreeAddr(t), support.FreeAddr(t)
	args := append([]string{
		"lb", "haproxy", "-o", h.config, "--data-dir", c.DataDir, "--source-address", balancerAddress,
		"--smtp", smtp, "--smtps", smtps, "--smtps-port", port, "--http", web, "--http-cert", both,
	}, h.flags()...)
	if out, err := chainmail(t, args...).CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("lb haproxy: %v\n%s", err, out)
	}
	h.start(t)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(public)
	trusting := &tls.Config{RootCAs: roots, ServerName: "localhost"}
	eventually(t, 10*time.Second, "HAProxy sees the node", func() bool {
		conn, err := tls.Dial("tcp", smtps, trusting)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})

	conn, err := tls.Dial("tcp", smtps, trusting)
	if err != nil {
		t.Fatal(err)
	}
	client := support.Greet(t, conn, "EHLO client.example")
	msg := client.Data(crlf(peerText("mail over TLS, by way of HAProxy")), 1, 1)
	r := receipts(t, n, msg)
	if got, want := r[0].Client, conn.LocalAddr().String(); got != want || r[0].TLS == "" {
		t.Errorf("the receipt says that the client was %s, over %q, want %s, over TLS", got, r[0].TLS, want)
	}

	browser := &http.Client{Transport: &http.Transport{TLSClientConfig: trusting, ForceAttemptHTTP2: true}}
	defer browser.CloseIdleConnections()
	resp, err := browser.Get("https://" + web + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.ProtoMajor != 2 {
		t.Errorf("the console over TLS: %s over %s", resp.Status, resp.Proto)
	}
	for _, cookie := range resp.Cookies() {
		if cookie.Name == "chainmail_node" && (!cookie.Secure || !cookie.HttpOnly) {
			t.Errorf("the cookie %s is not for TLS and HTTP alone", cookie)
		}
	}
}

// TestHAProxyVerifies: a node is one when the cluster's CA says so.
func TestHAProxyVerifies(t *testing.T) {
	h := newHAProxy(t, filepath.Join(t.TempDir(), "log"))
	c := config(t)
	awaitAddress(t, support.Start(t, c))
	foreign, _ := makeCertificate(t, filepath.Dir(c.DataDir))
	smtp, web := support.FreeAddr(t), support.FreeAddr(t)
	if out, err := chainmail(t, append([]string{
		"lb", "haproxy", "-o", h.config, "--data-dir", c.DataDir, "--smtp", smtp, "--http", web,
	}, h.flags()...)...).CombinedOutput(); err != nil {
		t.Fatalf("lb haproxy: %v\n%s", err, out)
	}
	public, err := os.ReadFile(foreign)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, h.config+".ca.pem", string(public))
	h.start(t)
	eventually(t, 10*time.Second, "HAProxy answers", func() bool {
		resp, err := http.Get("http://" + web + "/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable {
			t.Fatalf("HAProxy passes requests to a node of another CA: %s", resp.Status)
		}
		return true
	})
	eventually(t, 10*time.Second, "no mail is passed to a node of another CA", func() bool {
		conn, err := net.DialTimeout("tcp", smtp, time.Second)
		if err != nil {
			return false
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		_, err = conn.Read(make([]byte, 1))
		return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)
	})
}
