package testcluster_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"chainmail/node/api"
)

// The .deb on hosts with systemd: what `make package-test` runs. A host is a
// container booted from a Debian tree that is never written (its changes are in
// memory), with one network card on a switch of its own.

// packageLab is the switch, the packages and the tree.
type packageLab struct {
	t                    *testing.T
	tree, dir, program   string
	prefix, acknowledged string
}

// packageHost is a machine with the package.
type packageHost struct {
	*packageLab
	name, address string
	container     *exec.Cmd
	init          int // the process of its systemd, as this machine counts
	console       *bytes.Buffer
}

func newPackageLab(t *testing.T) *packageLab {
	l := &packageLab{
		t: t, tree: os.Getenv("PACKAGE_TEST_ROOT"), dir: os.Getenv("PACKAGE_TEST_DIR"), program: os.Getenv("PACKAGE_TEST_PROGRAM"),
		prefix: fmt.Sprintf("cmpk%d-", os.Getpid()), acknowledged: filepath.Join(t.TempDir(), "acked"),
	}
	if l.tree == "" || l.dir == "" || l.program == "" {
		t.Skip("NOT RUN: as root, `make package-test` boots hosts for this test")
	}
	l.must("ip", "netns", "add", l.prefix+"switch")
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", l.prefix+"switch").Run() })
	l.ip("switch", "link add switch type bridge")
	l.ip("switch", "link set switch up")
	l.ip("switch", "addr add 192.0.2.254/24 dev switch")
	return l
}

// must runs a program of this machine.
func (l *packageLab) must(program string, args ...string) string {
	l.t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// ip configures the network of a host, or of the switch.
func (l *packageLab) ip(host, command string) {
	l.t.Helper()
	l.must("ip", append([]string{"-n", l.prefix + host}, strings.Fields(command)...)...)
}

// boot starts a host and waits until its services run.
func (l *packageLab) boot(name, address string) *packageHost {
	l.t.Helper()
	h := &packageHost{packageLab: l, name: name, address: address, console: new(bytes.Buffer)}
	space := l.prefix + name
	l.must("ip", "netns", "add", space)
	l.t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", space).Run() })
	l.ip("switch", fmt.Sprintf("link add port-%s type veth peer name eth0 netns %s", name, space))
	l.ip("switch", fmt.Sprintf("link set port-%s master switch up", name))
	for _, c := range []string{"link set lo up", "addr add " + address + "/24 dev eth0", "link set eth0 up", "route add default via 192.0.2.254"} {
		l.ip(name, c)
	}
	h.container = exec.Command("systemd-nspawn", "--quiet", "--directory", l.tree, "--machine", space, "--hostname", name,
		"--register=no", "--keep-unit", "--network-namespace-path=/run/netns/"+space, "--volatile=overlay",
		"--bind-ro="+l.dir+":/packages", "--boot")
	h.container.Stdout, h.container.Stderr = h.console, h.console
	if err := h.container.Start(); err != nil {
		l.t.Fatalf("systemd-nspawn: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- h.container.Wait() }()
	l.t.Cleanup(func() { h.halt(ended) })
	children := fmt.Sprintf("/proc/%d/task/%[1]d/children", h.container.Process.Pid)
	eventually(l.t, time.Minute, name+" has booted", func() bool {
		text, _ := os.ReadFile(children)
		h.init, _ = strconv.Atoi(strings.TrimSpace(string(text)))
		if h.init == 0 {
			return false
		}
		out, _ := h.command("systemctl is-system-running --wait").Output()
		return strings.TrimSpace(string(out)) == "running"
	})
	return h
}

// halt ends the container in order: killed, it would leave its init behind.
func (h *packageHost) halt(ended chan error) {
	if h.t.Failed() {
		out, _ := h.command("journalctl --no-pager -u 'chainmail*' -n 60").CombinedOutput()
		h.t.Logf("journal of %s:\n%s", h.name, out)
	}
	_ = h.container.Process.Signal(syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(time.Minute):
		_ = h.container.Process.Kill()
		<-ended
	}
}

// command is a line for the host's shell.
func (h *packageHost) command(line string) *exec.Cmd {
	return exec.Command("nsenter", "--target", fmt.Sprint(h.init), "--all", "--", "/bin/sh", "-c", line)
}

// sh runs a line on the host and returns its output.
func (h *packageHost) sh(line string) string {
	h.t.Helper()
	out, err := h.command(line).CombinedOutput()
	if err != nil {
		h.t.Fatalf("%s# %s: %v\n%s", h.name, line, err, out)
	}
	return strings.TrimSpace(string(out))
}

// says fails the test unless a line prints what is wanted; its exit code does
// not count.
func (h *packageHost) says(line, want string) {
	h.t.Helper()
	out, _ := h.command(line).CombinedOutput()
	if got := strings.TrimSpace(string(out)); got != want {
		h.t.Errorf("%s# %s: %q, want %q", h.name, line, got, want)
	}
}

// show returns a property of the service.
func (h *packageHost) show(property string) string {
	h.t.Helper()
	return h.sh("systemctl show --value -p " + property + " chainmail")
}

func (h *packageHost) status() (s api.Status) {
	h.t.Helper()
	out, err := h.command("chainmail status -o json 2>/dev/null").Output()
	if _, exited := err.(*exec.ExitError); err != nil && !exited { //nolint:errorlint // 1 is a red verdict
		h.t.Fatal(err)
	}
	_ = json.Unmarshal(out, &s) // a node that does not run has no state
	return s
}

// takesMail waits until the service runs and the node says that it is well.
func (h *packageHost) takesMail() {
	h.t.Helper()
	eventually(h.t, time.Minute, h.name+" takes mail", func() bool { return h.status().State == api.StateActive })
}

// send sends mails from the switch, and keeps what was acknowledged.
func (l *packageLab) send(h *packageHost, args ...string) {
	l.t.Helper()
	l.must("ip", append([]string{"netns", "exec", l.prefix + "switch", l.program, "load", "--target", h.address + ":25", "--acked", l.acknowledged}, args...)...)
}

// complete fails unless a host has every mail that was acknowledged.
func (h *packageHost) complete() {
	h.t.Helper()
	acked, err := os.ReadFile(h.acknowledged)
	if err != nil {
		h.t.Fatal(err)
	}
	check := h.command("cat > /run/acked && chainmail load --check /run/acked")
	check.Stdin = bytes.NewReader(acked)
	if out, err := check.CombinedOutput(); err != nil {
		h.t.Errorf("%s has not all of %d mails: %v\n%s", h.name, bytes.Count(acked, []byte("\n")), err, out)
	}
}

// TestPackage: two hosts live through what happens to a package, from the
// installation to the purge.
func TestPackage(t *testing.T) {
	l := newPackageLab(t)
	a, b := l.boot("a", "192.0.2.1"), l.boot("b", "192.0.2.2")
	for _, step := range []struct {
		name string
		do   func(t *testing.T, a, b *packageHost)
	}{
		{"install", packageInstalls},
		{"first node", packageStarts},
		{"join", packageJoins},
		{"by root", packageByRoot},
		{"killed", packageKilled},
		{"hung", packageHung},
		{"upgrade", packageUpgrades},
		{"wrong configuration", packageMisconfigured},
		{"disk full", packageDiskFails},
		{"remove and purge", packageGoes},
	} {
		began := time.Now()
		ok := t.Run(step.name, func(t *testing.T) {
			lab := *l
			lab.t = t
			here, there := *a, *b
			here.packageLab, there.packageLab = &lab, &lab
			step.do(t, &here, &there)
		})
		if !ok {
			t.FailNow() // the next steps build on it
		}
		t.Logf("%s: %v", step.name, time.Since(began).Round(time.Millisecond))
	}
}

func packageInstalls(t *testing.T, a, b *packageHost) {
	for _, h := range []*packageHost{a, b} {
		out := h.sh("dpkg -i /packages/test1.deb")
		if !strings.Contains(out, "nothing runs yet") {
			t.Errorf("it does not say how to go on:\n%s", out)
		}
		for _, unit := range []string{"chainmail", "chainmail-lb", "chainmail-lb-watch"} {
			h.says("systemctl is-enabled "+unit, "disabled")
			h.says("systemctl is-active "+unit, "inactive")
			t.Log(h.sh("systemd-analyze security --no-pager " + unit + " | tail -1"))
		}
		h.says("stat -c '%a %U %G' /var/lib/chainmail", "700 chainmail chainmail")
		h.says("ls -A /var/lib/chainmail", "")
		h.says("chainmail config check >/dev/null && echo well", "well")
		h.sh("zgrep -q 'join.*node' /usr/share/man/man1/chainmail-join-node.1.gz && grep -q chainmail /usr/share/bash-completion/completions/chainmail")
		h.says("systemd-analyze verify --man=no /usr/lib/systemd/system/chainmail.service /usr/lib/systemd/system/chainmail-lb.service /usr/lib/systemd/system/chainmail-lb-watch.service 2>&1 | grep chainmail", "")
	}
}

func packageStarts(t *testing.T, a, _ *packageHost) {
	a.sh("echo 'name: a' >> /etc/chainmail/chainmail.yaml && systemctl enable --now chainmail")
	if s := a.status(); s.State != api.StateActive || s.Node != "a" { // at once: it had said that it is ready
		t.Errorf("%s is %s", s.Node, s.State)
	}
	if text := a.show("StatusText"); !strings.HasPrefix(text, "active; 0 mails") {
		t.Errorf("systemctl shows %q", text)
	}
	a.says("ps -o user= -C chainmail", "chainmail")
	a.send(a, "--count", "50")
	a.complete()
}

func packageJoins(t *testing.T, a, b *packageHost) {
	token := a.sh("chainmail token join 2>/dev/null")
	join := b.command("umask 077; cat > /root/token && chainmail join-node --name b --peer 192.0.2.1:8025 --token - < /root/token")
	join.Stdin = strings.NewReader(token)
	out, err := join.CombinedOutput()
	if err != nil {
		t.Fatalf("join-node: %v\n%s", err, out)
	}
	for _, want := range []string{"belongs to chainmail", "/etc/chainmail/chainmail.yaml", "systemctl enable --now chainmail"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("it does not speak of %s:\n%s", want, out)
		}
	}
	b.says("grep -c '^name: b$' /etc/chainmail/chainmail.yaml", "1")
	b.says("stat -c '%a %U' /etc/chainmail/chainmail.yaml", "644 root")
	b.sh("systemctl enable --now chainmail")
	b.takesMail()
	b.says("find /var/lib/chainmail ! -user chainmail", "")
	b.send(b, "--count", "50")
	for _, h := range []*packageHost{a, b} {
		eventually(t, time.Minute, h.name+" has both nodes' mail", func() bool { return h.status().Receipts == 100 })
		h.complete()
	}
}

// packageByRoot: what root does by hand in the service's directory leaves
// nothing there that the service cannot use.
func packageByRoot(t *testing.T, a, b *packageHost) {
	b.sh("systemctl stop chainmail")
	b.sh("chainmail verify")
	by := b.command("exec chainmail node 2>/run/by-root")
	if err := by.Start(); err != nil {
		t.Fatal(err)
	}
	b.takesMail()
	b.says("ps -o user= -C chainmail", "chainmail")
	b.says("grep -c 'running as that user' /run/by-root", "1")
	b.send(b, "--count", "5")
	b.sh("pkill -TERM -x chainmail")
	if err := by.Wait(); err != nil {
		t.Errorf("the node by hand: %v\n%s", err, b.sh("cat /run/by-root"))
	}
	b.says("find /var/lib/chainmail ! -user chainmail", "")
	// A node that root ran before there was a package goes on as the service.
	b.sh("chown -R root:root /var/lib/chainmail && systemctl start chainmail")
	b.says("find /var/lib/chainmail ! -user chainmail", "")
	b.complete()
}

func packageKilled(t *testing.T, a, _ *packageHost) {
	a.sh("kill -KILL $(systemctl show --value -p MainPID chainmail)")
	eventually(t, time.Minute, "systemd starts it again", func() bool { return a.show("NRestarts") == "1" })
	a.takesMail()
	a.complete()
}

func packageHung(t *testing.T, a, _ *packageHost) {
	a.sh("mkdir -p /etc/systemd/system/chainmail.service.d && printf '[Service]\\nWatchdogSec=3\\n' > /etc/systemd/system/chainmail.service.d/test.conf && systemctl daemon-reload && systemctl restart chainmail")
	time.Sleep(6 * time.Second) // two watchdogs long it does nothing to a node that is well
	if n := a.show("NRestarts"); n != "0" {
		t.Fatalf("it was started again %s times", n)
	}
	a.sh("kill -STOP $(systemctl show --value -p MainPID chainmail)")
	eventually(t, time.Minute, "the watchdog has it started again", func() bool { return a.show("NRestarts") == "1" })
	a.takesMail()
	a.says("journalctl -u chainmail -o cat | grep -c 'Watchdog timeout'", "1")
	a.sh("rm /etc/systemd/system/chainmail.service.d/test.conf && systemctl daemon-reload && systemctl restart chainmail")
	a.complete()
}

// packageUpgrades: one host after the other, while mail comes; a client whose
// session breaks goes on with the next node, like a mail server with two MX
// records.
func packageUpgrades(t *testing.T, a, b *packageHost) {
	hosts := []*packageHost{a, b}
	before := a.status().Receipts
	stop, ended := make(chan struct{}), new(sync.WaitGroup)
	ended.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				h := hosts[i%2]
				_ = exec.Command("ip", "netns", "exec", h.prefix+"switch", h.program, "load", "--target", h.address+":25",
					"--acked", h.acknowledged, "--count", "40", "--sessions", "2", "--rate", "80").Run() // one that is refused goes to the next
			}
		}
	})
	for i, h := range hosts {
		ask := hosts[1-i]
		eventually(t, time.Minute, h.name+" may be stopped", func() bool { return ask.command("chainmail safe-to-stop "+h.name).Run() == nil })
		pid := h.show("MainPID")
		out := h.sh("dpkg -i /packages/test2.deb")
		if strings.Contains(out, "nothing runs yet") {
			t.Errorf("an upgrade is taken for a first installation:\n%s", out)
		}
		if now := h.show("MainPID"); now == pid || now == "0" {
			t.Errorf("%s was not started again: process %s, then %s", h.name, pid, now)
		}
		h.says("dpkg-query -W -f '${Version}' chainmail | grep -o 'test.$'", "test2")
		h.takesMail()
		h.says("systemctl is-active chainmail", "active")
	}
	close(stop)
	ended.Wait()
	if after := a.status().Receipts; after < before+80 {
		t.Errorf("%d receipts before, %d after: there was no load", before, after)
	}
	eventually(t, time.Minute, "both have the same", func() bool { return a.status().Receipts == b.status().Receipts })
	a.complete()
	b.complete()
	for _, h := range hosts {
		h.says("journalctl -b -p err -o cat -u chainmail | grep -v -i -e watchdog -e \"Main process exited\" -e 'Failed with result'", "")
	}
}

func packageMisconfigured(t *testing.T, a, _ *packageHost) {
	a.sh("cp /etc/chainmail/chainmail.yaml /run/kept && echo 'colour: red' >> /etc/chainmail/chainmail.yaml")
	if a.command("systemctl restart chainmail").Run() == nil {
		t.Error("it starts with a key that does not exist")
	}
	time.Sleep(7 * time.Second) // RestartSec is 5
	a.says("systemctl show --value -p ActiveState -p ExecMainStatus -p NRestarts chainmail | sort | tr '\\n' ' '", "0 2 failed")
	a.sh("cp /run/kept /etc/chainmail/chainmail.yaml && systemctl reset-failed chainmail && systemctl start chainmail")
	a.takesMail()
}

// packageDiskFails: the disk fills up faster than the node looks, so a write
// fails, and nobody starts the node again on that disk.
func packageDiskFails(t *testing.T, a, _ *packageHost) {
	a.sh("systemctl stop chainmail && mkdir /run/small && mount -t tmpfs -o size=32M,mode=0700,uid=chainmail,gid=chainmail small /run/small")
	a.sh("printf '[Service]\\nReadWritePaths=/run/small\\n' > /etc/systemd/system/chainmail.service.d/test.conf && systemctl daemon-reload")
	a.sh("printf 'name: small\\ndata_dir: /run/small\\ndisk: {min_free: 1MiB}\\n' > /etc/chainmail/chainmail.yaml && systemctl start chainmail")
	a.command("head -c 40M /dev/zero > /run/small/fill").Run() //nolint:errcheck // until the disk is full
	_ = exec.Command("ip", "netns", "exec", a.prefix+"switch", "timeout", "10", a.program, "load", "--target", a.address+":25", "--count", "20", "--size", "50000").Run()
	eventually(t, time.Minute, "the node ends", func() bool { return a.show("ActiveState") == "failed" })
	time.Sleep(7 * time.Second)
	a.says("systemctl show --value -p ActiveState -p ExecMainStatus -p NRestarts chainmail | sort | tr '\\n' ' '", "0 70 failed")
	a.sh("umount /run/small && rm /etc/systemd/system/chainmail.service.d/test.conf && cp /run/kept /etc/chainmail/chainmail.yaml && systemctl daemon-reload && systemctl reset-failed chainmail && systemctl start chainmail")
	a.takesMail()
	a.complete()
}

func packageGoes(t *testing.T, a, b *packageHost) {
	a.sh("dpkg -r chainmail")
	a.says("pgrep -x chainmail", "")
	a.says("ls /usr/bin/chainmail /usr/lib/systemd/system/chainmail.service 2>/dev/null", "")
	a.says("test -e /var/lib/chainmail/archive && grep -c '^name: a$' /etc/chainmail/chainmail.yaml", "1")
	// It comes back as it was.
	a.sh("dpkg -i /packages/test2.deb && systemctl start chainmail")
	a.takesMail()
	a.complete()
	out := a.sh("dpkg -P chainmail 2>&1")
	if !strings.Contains(out, "no mail was removed: it is in /var/lib/chainmail") {
		t.Errorf("it does not say where the mail is:\n%s", out)
	}
	a.says("ls -d /var/lib/chainmail/archive /etc/chainmail 2>/dev/null", "/var/lib/chainmail/archive")
	a.says("find /etc/systemd -name '*chainmail*' | grep -v chainmail.service.d", "")
	a.says("systemctl is-system-running", "running")

	b.sh("systemctl stop chainmail && rm -r /var/lib/chainmail")
	if out := b.sh("dpkg -P chainmail 2>&1"); strings.Contains(out, "no mail was removed") {
		t.Errorf("it speaks of mail that is not there:\n%s", out)
	}
}

// nginxComplains prints what the nginx of chainmail-lb says of itself at the levels
// of alert and emerg, and all else that it calls an error.
const nginxComplains = "journalctl -b -o cat -u chainmail-lb | grep -e 'level=ERROR' -e '\\[alert\\]' -e '\\[emerg\\]'"

// TestPackageBalancer: a node, and a host in front of it, with an nginx of its
// own and then with Debian's.
func TestPackageBalancer(t *testing.T) {
	l := newPackageLab(t)
	a, front := l.boot("a", "192.0.2.1"), l.boot("front", "192.0.2.9")
	a.sh("dpkg -i /packages/test1.deb && echo 'name: a' >> /etc/chainmail/chainmail.yaml && systemctl start chainmail && chainmail cluster set balancers=192.0.2.9")
	token := front.command("cat > /etc/chainmail/lb.token && chown root:chainmail-lb /etc/chainmail/lb.token && chmod 640 /etc/chainmail/lb.token")
	front.sh("dpkg -i /packages/test1.deb && printf 'peer: 192.0.2.1:8025\ntoken-file: /etc/chainmail/lb.token\n' > /etc/chainmail/lb.yaml")
	token.Stdin = strings.NewReader(a.sh("chainmail token api --name lb --scope cluster 2>/dev/null"))
	if out, err := token.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	client := func() string {
		out := a.sh("chainmail list -o json | head -1 | cut -d'\"' -f4 | xargs chainmail show")
		for line := range strings.Lines(out) {
			if strings.Contains(line, "192.0.2.254") {
				return "192.0.2.254"
			}
		}
		return out
	}

	front.sh("systemctl enable --now chainmail-lb")
	front.says("ps -o user= -C nginx | sort -u", "chainmail-lb")
	l.send(front, "--count", "20")
	a.complete()
	if got := client(); got != "192.0.2.254" {
		t.Errorf("the receipt does not tell the client's address:\n%s", got)
	}
	if text := front.sh("systemctl show --value -p StatusText chainmail-lb"); !strings.HasPrefix(text, "mail to a") {
		t.Errorf("systemctl shows %q", text)
	}
	for i := 2; i < 5; i++ { // reloads, with sessions that are open
		front.sh("echo '# by hand' >> /var/lib/chainmail-lb/nginx.conf")
		l.send(front, "--count", "200", "--sessions", "8", "--rate", "100")
		eventually(t, time.Minute, "it is reloaded", func() bool {
			return front.sh("journalctl -b -o cat -u chainmail-lb | grep -c 'the balancer has a new configuration'") == fmt.Sprint(i)
		})
	}
	front.says("ps -o user= -C nginx | sort -u", "chainmail-lb")
	// nginx raises its workers' limit of files itself, within what the unit allows.
	front.says("for pid in $(pgrep -f '^nginx: worker'); do sed -n 's/^Max open files *//p' /proc/$pid/limits; done | sort -u | tr -s ' '", "16384 16384 files")
	a.complete()
	front.says(nginxComplains, "")
	front.sh("kill -KILL $(systemctl show --value -p MainPID chainmail-lb)")
	eventually(t, time.Minute, "it balances again", func() bool {
		return front.command("test $(systemctl show --value -p NRestarts chainmail-lb) = 1 && systemctl -q is-active chainmail-lb").Run() == nil
	})
	l.send(front, "--count", "20")
	front.sh("dpkg -i /packages/test2.deb")
	front.says("systemctl is-active chainmail-lb", "active")
	l.send(front, "--count", "20")
	a.complete()

	// The balancer's host is a good place for a witness; port 8025 is the balancer's.
	join := front.command("chainmail join-node --witness --name w --http :8035 --peer 192.0.2.1:8025 --token -")
	join.Stdin = strings.NewReader(a.sh("chainmail token join 2>/dev/null"))
	if out, err := join.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	front.sh("systemctl enable --now chainmail")
	front.says("systemctl show --value -p StatusText chainmail", "active; votes, keeps no mail")
	front.says("find /var/lib/chainmail ! -user chainmail", "")

	front.sh("systemctl disable --now chainmail-lb && systemctl unmask nginx")
	front.says("pgrep -x nginx", "")
	front.sh("systemctl enable --now chainmail-lb-watch")
	front.says("systemctl is-active nginx", "active")
	front.says("nginx -t -q", "")
	l.send(front, "--count", "20")
	a.complete()
	front.says(nginxComplains, "")
	for _, unit := range []string{"chainmail-lb", "chainmail-lb-watch"} {
		front.says("journalctl -b -p err -o cat -u "+unit+" | grep -v -e 'Main process exited' -e 'Failed with result'", "")
	}
	front.sh("dpkg -P chainmail")
	// The keys of the witness and the token are left: they were not the package's.
	front.says("ls -d /var/lib/chainmail* /etc/chainmail/*", "/etc/chainmail/lb.token\n/var/lib/chainmail")
}
