package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"chainmail/archive/mail/mailtest"
	"chainmail/lb"
	"chainmail/node/api"
	"chainmail/testcluster/support"
)

// noLBConfig keeps the system's file out of a test.
func noLBConfig(t *testing.T) {
	t.Helper()
	old := systemLBConfig
	t.Cleanup(func() { systemLBConfig = old })
	systemLBConfig = filepath.Join(t.TempDir(), "none.yaml")
}

func writeLBConfig(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "lb.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestLBRefusals: each bad command line or configuration, and what is said of it.
func TestLBRefusals(t *testing.T) {
	noLBConfig(t)
	for _, c := range []struct {
		args   string
		config string
		env    string
		want   string
	}{
		{args: "nginx", config: "smpt: x", want: "chainmail: config: smpt: unknown key (x): did you mean smtp?"},
		{args: "nginx", config: "colour: red", want: "chainmail: config: colour: unknown key (red): remove it; /usr/share/doc/chainmail/examples/lb.yaml lists every key"},
		{args: "nginx", config: "smtp: {a: b}", want: "not a value or a list of values"},
		{args: "nginx", config: "- a", want: "not YAML of keys and values"},
		{args: "nginx", config: "http-on-front: perhaps", want: "http-on-front: cannot be used (perhaps): see chainmail lb nginx --help"},
		{args: "nginx", env: "CHAINMAIL_LB_SMPT=x", want: "CHAINMAIL_LB_SMPT: unknown environment variable (x): did you mean smtp?"},
		{args: "nginx --config /nonexistent", want: "cannot read the file: no such file"},
		{args: "nginx --smtp 25", want: `--smtp: "25" is no address to listen on: write :25`},
		{args: "nginx --smtp localhost:25", want: "write the IP address and not a name"},
		{args: "nginx --smtp off --http off", want: "nothing to serve"},
		{args: "nginx --http-mode magic", want: `--http-mode is "magic"`},
		{args: "nginx --source-address here", want: `--source-address is "here"`},
		{args: "nginx --ca relative", want: "--ca is"},
		{args: "nginx --nginx-version 1", want: "--nginx-version"},
		{args: "nginx --peer 192.0.2.1:8025", want: "$CHAINMAIL_TOKEN holds no API token, which --peer needs: write the output of 'chainmail token api --name lb --scope cluster'"},
		{args: "nginx --peer 192.0.2.1:8025 --token-file /nonexistent", want: "--token-file: open /nonexistent"},
		{args: "nginx --peer 192.0.2.1:8025", env: "CHAINMAIL_TOKEN=secret", want: "$CHAINMAIL_TOKEN holds no API token, or not the whole of one"},
		{args: "nginx --peer 192.0.2.1:8025 --token-file /dev/null", want: "--token-file /dev/null holds no API token"},
		{args: "nginx --peer 192.0.2.1:8025 --token-file /proc/version", want: "--token-file /proc/version holds no API token, or not the whole of one"},
		{args: "nginx --peer ::1:2504", env: "CHAINMAIL_TOKEN=" + someToken(), want: `--peer: "::1:2504" is not the address of a node's HTTP port: write HOST:PORT or [2001:db8::1]:8025`},
		{args: "nginx --smtp :25 --http :25", want: "--smtp and --http are both 0.0.0.0:25: give one of them another port"},
		{args: "nginx --include foo --nginx-version 1.22.1", want: `--include is "foo": use main, stream or http`},
		{args: "watch", want: "--out is missing"},
		{args: "watch --out magic=/x", want: `--out is "magic=/x"`},
		{args: "watch --out /x --log-level loud", want: `--log-level is "loud"`},
		{args: "watch --out /x --log-format xml", want: `--log-format is "xml"`},
		{args: "run", want: "--dir is missing"},
		{args: "dns", want: "--domain is missing"},
		{args: "dns --domain example.com --also a", want: `--also is "a"`},
		{args: "keepalived", want: "--own is missing: give this balancer's own address"},
		{args: "keepalived --own 192.0.2.1", want: "--interface is missing: name the network interface of the shared address, such as eth0"},
		{args: "keepalived --own 192.0.2.1 --other 192.0.2.2 --shared 192.0.2.3", want: "--shared is"},
		{args: "keepalived --own 192.0.2.1 --other 192.0.2.1 --shared 192.0.2.3/24 --interface eth0", want: "which is --own"},
	} {
		args := append([]string{"lb"}, strings.Fields(c.args)...)
		if c.config != "" {
			args = append(args, "--config", writeLBConfig(t, c.config))
		}
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			if name, value, ok := strings.Cut(c.env, "="); ok {
				t.Setenv(name, value)
			}
			code, stdout, stderr := runCommand(t, args...)
			if code != exitUsage || stdout != "" || !strings.Contains(stderr, c.want) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("exit code %d\n%s%s\nwant: %s", code, stdout, stderr, c.want)
			}
		})
	}
}

// someToken has the form of one.
func someToken() string { return api.Secret{}.Text(api.APITokenPrefix) }

// TestLBFailures: what a machine lacks, and what is said of it.
func TestLBFailures(t *testing.T) {
	noLBConfig(t)
	t.Setenv("CHAINMAIL_TOKEN", someToken())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := t.TempDir()
	for args, want := range map[string]string{
		"nginx --nginx-version 1.22.1 -o " + dir + "/none/z --peer 192.0.2.1:8025": "cannot write " + dir + "/none/z: no such file or directory: make the directory, or name another with -o",
		"nginx --nginx /bin/true": "/bin/true: it does not say which version of nginx it is: name nginx's program with --nginx",
		"keepalived --own 192.0.2.1 --other 192.0.2.2 --shared 192.0.2.3/24 --interface e -o " + dir: "cannot write " + dir + ": is a directory: let this user write there, or name another with -o",
		"watch --out haproxy=" + dir + "/x --peer 192.0.2.1:8025 --metrics " + l.Addr().String():     "address already in use: choose another address with --metrics",
	} {
		code, stdout, stderr := runCommand(t, append([]string{"lb"}, strings.Fields(args)...)...)
		if code != exitFailed || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit code %d\n%s%s\nwant: %s", args, code, stdout, stderr, want)
		}
	}
}

// TestLBTokenOfSomebodyElse: a mistake of the machine, after which a supervisor
// may try again.
func TestLBTokenOfSomebodyElse(t *testing.T) {
	noLBConfig(t)
	top := filepath.Dir(othersDir(t))
	program, token := filepath.Join(top, "chainmail"), filepath.Join(top, "token")
	copyFile(t, support.Program(t), program)
	if err := os.WriteFile(token, []byte(someToken()), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "lb", "nginx", "--nginx-version", "1.22.1", "--peer", "192.0.2.1:8025", "--token-file", token)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != exitFailed || !strings.Contains(string(out), "permission denied: let the user nobody read it; for the packaged service: chown root:chainmail-lb "+token+", chmod 640 "+token+"\n") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestLBCompletesValues: those that can only be few.
func TestLBCompletesValues(t *testing.T) {
	for args, want := range map[string]string{
		"nginx --include ":   "main\nstream\nhttp\n",
		"run --http-mode ":   "proxy\npassthrough\n",
		"watch --log-level ": "debug\ninfo\nwarn\nerror\n",
	} {
		code, stdout, _ := runCommand(t, append([]string{"__complete", "lb"}, strings.Split(args, " ")...)...)
		if code != exitOK || !strings.HasPrefix(stdout, want) {
			t.Errorf("%s: exit code %d: %s", args, code, stdout)
		}
	}
}

// TestLBSettings: flags before environment before file before defaults.
func TestLBSettings(t *testing.T) {
	noLBConfig(t)
	t.Setenv("CHAINMAIL_LB_PRIORITY", "120")
	t.Setenv("CHAINMAIL_LB_ROUTER", "61")
	file := writeLBConfig(t, "smtp: [':25', ':26'] # of another lb command\nrouter: 60\ninterface: eth7\nother: [192.0.2.11, 192.0.2.12]\npriority: 110\ncheck-user:\n")
	code, out, stderr := runCommand(t, "lb", "keepalived", "--config", file, "--own", "192.0.2.10", "--shared", "192.0.2.100/24", "--priority", "130")
	if code != exitOK || stderr != "" {
		t.Fatal(code, stderr)
	}
	for _, want := range []string{"priority 130\n", "virtual_router_id 61\n", "interface eth7\n", "\t\t192.0.2.11\n\t\t192.0.2.12\n", "script_user nobody\n", "/usr/bin/chainmail lb check --smtp 127.0.0.1:25"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
}

// TestLBSampleHoldsEveryKey: the sample names every flag once, and is valid with
// everything switched on.
func TestLBSampleHoldsEveryKey(t *testing.T) {
	noLBConfig(t)
	text, err := os.ReadFile(filepath.Join("..", "..", "packaging", "lb.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range lbKeys(newLBCommand()) {
		if key == "timeout" { // of lb check, which reads no file
			continue
		}
		if n := strings.Count("\n"+string(text), "\n"+key+":") + strings.Count("\n"+string(text), "\n#"+key+":"); n != 1 {
			t.Errorf("packaging/lb.yaml has %s %d times", key, n)
		}
	}
	file := writeLBConfig(t, string(text))
	if code, _, stderr := runCommand(t, "lb", "keepalived", "--config", file, "--own", "192.0.2.10", "--other", "192.0.2.11", "--shared", "192.0.2.100/24", "--interface", "eth0"); code != exitOK {
		t.Error(stderr)
	}
}

// TestLBCheck: what keepalived asks.
func TestLBCheck(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if code, _, stderr := runCommand(t, "lb", "check", "--smtp", addr); code != exitOK {
		t.Error(stderr)
	}
	l.Close()
	if code, _, stderr := runCommand(t, "lb", "check", "--smtp", addr); code != exitFailed || !strings.Contains(stderr, "the balancer does not take connections: ") {
		t.Error(code, stderr)
	}
}

// startReachableNode starts a node whose addresses are known to others, unlike
// those of startNode.
func startReachableNode(t *testing.T) *process {
	t.Helper()
	p := &process{dataDir: newDataDir(t), smtp: support.FreeAddr(t)}
	args := []string{"node", "--name", "test", "--data-dir", p.dataDir, "--smtp", p.smtp}
	for _, port := range []string{"--chain", "--gossip", "--raft", "--http"} {
		args = append(args, port, support.FreeAddr(t))
	}
	cmd := exec.Command(support.Program(t), args...)
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // says only that it was killed
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if code, _, _ := runCommand(t, "cluster", "show", "--data-dir", p.dataDir); code == exitOK {
			return p
		}
		if time.Now().After(deadline) {
			t.Fatal("the node does not start")
		}
	}
}

// TestLBAsksARealNode: over its admin socket, and over the network with a token
// that reads no mail.
func TestLBAsksARealNode(t *testing.T) {
	noLBConfig(t)
	p := startReachableNode(t)
	var cluster api.Cluster
	if err := json.Unmarshal(p.run(t, exitOK, "cluster", "show", "-o", "json"), &cluster); err != nil {
		t.Fatal(err)
	}
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, p.run(t, exitOK, "token", "api", "--name", "lb", "--scope", "cluster"), 0o600); err != nil {
		t.Fatal(err)
	}
	peer := cluster.Members[0].Addresses["http"]
	local := []string{"--data-dir", p.dataDir}
	remote := []string{"--peer", peer, "--token-file", token}
	for name, source := range map[string][]string{"socket": local, "token": remote} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "nginx.conf")
			args := append([]string{"lb", "nginx", "--nginx-version", "1.22.1", "--source-address", "127.0.0.2", "-o", out}, source...)
			code, stdout, stderr := runCommand(t, args...)
			if code != exitOK || stdout != "" || !strings.Contains(stderr, "chainmail cluster set balancers=127.0.0.2\n") {
				t.Fatal(code, stdout, stderr)
			}
			text, err := os.ReadFile(out)
			if err != nil || !strings.Contains(string(text), "server "+cluster.Members[0].Addresses["smtp"]+" max_fails=0; # test\n") {
				t.Errorf("%v\n%s", err, text)
			}
			ca, err := os.ReadFile(out + ".ca.pem")
			if err != nil || string(ca) != string(p.run(t, exitOK, "cluster", "ca")) {
				t.Errorf("%v\n%s", err, ca)
			}
			for part, names := range map[string]bool{"main": false, "stream": false, "http": true} {
				out := filepath.Join(t.TempDir(), part)
				code, _, stderr := runCommand(t, append([]string{"lb", "nginx", "--nginx-version", "1.22.1", "--include", part, "-o", out}, source...)...)
				if code != exitOK || !exists(out) || exists(out+".ca.pem") != names {
					t.Errorf("%s: exit code %d, with a CA: %v\n%s", part, code, exists(out+".ca.pem"), stderr)
				}
			}
			if code, _, stderr := runCommand(t, append([]string{"lb", "dns", "--domain", "example.com", "--also", "q=2001:db8::1"}, source...)...); code != exitUsage || !strings.Contains(stderr, `--also names "q", which is no node`) {
				t.Errorf("exit code %d: %s", code, stderr)
			}
			for _, what := range [][]string{{"nginx", "--include", "http"}, {"nginx", "--include", "main"}, {"haproxy"}, {"dns", "--domain", "example.com"}} {
				code, stdout, stderr := runCommand(t, append(append([]string{"lb"}, what...), source...)...)
				if code != exitOK || !strings.Contains(stdout, cluster.ID) {
					t.Error(what, code, stdout, stderr)
				}
			}
		})
	}
}

// TestLBWatchKeepsAFile: it writes, reloads once, and remembers.
func TestLBWatchKeepsAFile(t *testing.T) {
	noLBConfig(t)
	p := startReachableNode(t)
	dir := t.TempDir()
	out, loaded := filepath.Join(dir, "haproxy.cfg"), filepath.Join(dir, "loaded")
	for range 2 { // the second time there is nothing to do
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan int)
		var stderr strings.Builder
		go func() {
			ended <- run(ctx, []string{
				"lb", "watch", "--out", "haproxy=" + out, "--check", "grep -q ^global {}", "--reload", "echo . >> " + loaded,
				"--data-dir", p.dataDir, "--smtp", "127.0.0.1:2600", "--http", "off", "--source-address", "127.0.0.2",
			}, streams{strings.NewReader(""), io.Discard, &stderr})
		}()
		for deadline := time.Now().Add(20 * time.Second); !exists(loaded) && time.Now().Before(deadline); {
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(time.Second) // one more look, at least
		cancel()
		if code := <-ended; code != exitOK || !strings.Contains(stderr.String(), "balancers=127.0.0.2") {
			t.Errorf("exit code %d\n%s", code, stderr.String())
		}
	}
	text, _ := os.ReadFile(loaded)
	if config, err := os.ReadFile(out); string(text) != ".\n" || err != nil || !strings.Contains(string(config), "server test "+p.smtp) || !exists(out+".ca.pem") {
		t.Errorf("%q %v\n%s", text, err, config)
	}
}

// TestLBRunInFrontOfARealNode: mail through nginx has the client's address.
func TestLBRunInFrontOfARealNode(t *testing.T) {
	noLBConfig(t)
	if _, err := lb.DetectNginx(t.Context(), "nginx"); err != nil {
		if os.Getenv(mailtest.RequireVariable) == "1" && os.Geteuid() == 0 {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	p := startReachableNode(t)
	p.run(t, exitOK, "cluster", "set", "balancers=127.0.0.2")
	smtp, web, metrics := support.FreeAddr(t), support.FreeAddr(t), support.FreeAddr(t)
	dir := newDataDir(t)
	cmd := exec.Command(support.Program(t), "lb", "run", "--dir", dir, "--data-dir", p.dataDir, "--smtp", smtp, "--http", web, "--source-address", "127.0.0.2", "--metrics", metrics, "--log-format", "json")
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) { // nginx -t binds the port, too
		resp, err := http.Get("http://" + metrics + "/healthz")
		if err == nil {
			resp.Body.Close()
		}
		if err == nil && resp.StatusCode == http.StatusOK {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	conn, err := net.Dial("tcp", smtp)
	if err != nil {
		t.Fatal(err)
	}
	client := support.Greet(t, conn, "EHLO client.example")
	client.Data([]byte("Subject: through nginx\r\n\r\nHello\r\n"), 1, 1)
	var m api.Message
	if err := json.Unmarshal(p.run(t, exitOK, "show", p.ids(t)[0], "-o", "json"), &m); err != nil {
		t.Fatal(err)
	}
	if got, want := m.Receipts[0].Client, conn.LocalAddr().String(); got != want {
		t.Errorf("the receipt shows %s, want the client %s", got, want)
	}
	for url, want := range map[string]string{"http://" + web + "/readyz": `"active"`, "http://" + metrics + "/metrics": "chainmail_lb_trusted 1", "http://" + metrics + "/healthz": `"current":true`} {
		if got := fetch(t, url); !strings.Contains(got, want) {
			t.Errorf("%s: %s", url, got)
		}
	}
	conn.Close()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(60 * time.Second):
		t.Error("it does not end")
	}
	if _, err := net.Dial("tcp", smtp); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("something still listens: %v", err)
	}
}

// fakeNginx is a program that calls itself nginx, tells in a file of its folder who
// ran it with what, and refuses everything.
func fakeNginx(t *testing.T, dir string) (program string) {
	t.Helper()
	program = filepath.Join(dir, "nginx")
	text := "#!/bin/sh\nif [ \"$1\" = -V ]; then echo 'nginx version: nginx/1.22.1\nconfigure arguments: --with-stream' >&2; exit 0; fi\n" +
		"{ id -u; env; } > " + filepath.Join(dir, "d", "who") + "; exit 1\n"
	if err := os.WriteFile(program, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return program
}

// TestLBRunBecomesTheOwner: root who starts the service's balancer by hand runs no
// configuration that the service's user wrote, and leaves no file that it cannot
// write.
func TestLBRunBecomesTheOwner(t *testing.T) {
	noLBConfig(t)
	for _, name := range []string{"", "new"} { // the folder itself, or one to be made in it
		dir := othersDir(t)
		top := filepath.Dir(dir)
		program, nginx := filepath.Join(top, "chainmail"), fakeNginx(t, top)
		copyFile(t, support.Program(t), program)
		if name == "" {
			config := filepath.Join(dir, "nginx.conf")
			if err := errors.Join(os.WriteFile(config, []byte("load_module /nonexistent.so;\n"), 0o644), os.Chown(config, nobody, nobody)); err != nil {
				t.Fatal(err)
			}
		}
		var said syncedText
		cmd := exec.Command(program, "lb", "run", "--dir", filepath.Join(dir, name), "--nginx", nginx, "--data-dir", dir, "--smtp", "127.0.0.1:2600", "--http", "off")
		cmd.Env = append(os.Environ(), "SECRET_OF_ROOT=1")
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(20 * time.Second); !strings.Contains(said.String(), "cannot be followed"); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Errorf("it does not run: %s", said.String())
				break
			}
		}
		is, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "status"))
		if err != nil || !strings.Contains(string(is), "Uid:\t65534\t65534\t65534\t65534") || !strings.Contains(string(is), "CapEff:\t0000000000000400") {
			t.Errorf("%v\n%s", err, is)
		}
		if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
			t.Error(err, said.String())
		}
		if allOf(t, dir) < 4 || !strings.Contains(said.String(), ": running as that user.\n") {
			t.Error(said.String())
		}
		if who, err := os.ReadFile(filepath.Join(dir, "who")); name == "" && (err != nil || !strings.HasPrefix(string(who), "65534\n") || strings.Contains(string(who), "SECRET_OF_ROOT")) {
			t.Errorf("%v: nginx was run by\n%s", err, who)
		}
	}
}

// TestLBWatchKeepsOutOfOthersFolders: the balancer reads as root what it writes.
func TestLBWatchKeepsOutOfOthersFolders(t *testing.T) {
	noLBConfig(t)
	dir, mine := othersDir(t), t.TempDir()
	for _, args := range [][]string{
		{"--out", "haproxy=" + filepath.Join(dir, "haproxy.cfg")},
		{"--out", "haproxy=" + filepath.Join(mine, "haproxy.cfg"), "--out", "haproxy=" + filepath.Join(dir, "second.cfg")},
		{"--out", "haproxy=" + filepath.Join(mine, "haproxy.cfg"), "--ca", filepath.Join(dir, "ca.pem")},
	} {
		code, _, stderr := runCommand(t, append([]string{"lb", "watch", "--data-dir", mine}, args...)...)
		if code != exitUsage || !strings.Contains(stderr, dir+" belongs to ") || !strings.Contains(stderr, "name a folder of root's, or run this as that user") || allOf(t, dir) != 1 {
			t.Errorf("%v: exit code %d: %s", args, code, stderr)
		}
	}
}

// syncedText is written by one goroutine and read by another.
type syncedText struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncedText) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncedText) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestListenAddresses(t *testing.T) {
	for text, want := range map[string]string{"192.0.2.1:25": "192.0.2.1:25", "[::1]:25": "[::1]:25", "off": "", "": ""} {
		got, err := listenAddresses(text)
		if err != nil || len(got) > 1 || len(got) == 1 && got[0] != netip.MustParseAddrPort(want) || len(got) == 0 && want != "" {
			t.Errorf("%q: %v %v", text, got, err)
		}
	}
	if got, err := listenAddresses(":25"); err != nil || got[0].String() != "0.0.0.0:25" {
		t.Error(got, err)
	}
}

func fetch(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
