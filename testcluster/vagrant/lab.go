package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// lab drives the hosts of a Vagrantfile: by vagrant where it must, else by ssh,
// which takes a tenth of the time of `vagrant ssh`.
type lab struct {
	vagrant string
	dir     string // of the Vagrantfile
	tmp     string
	log     io.Writer // what vagrant prints
}

// host is one machine of the Vagrantfile.
type host struct {
	Name     string
	Provider string
	State    string // running, shutoff, not_created, … as the provider calls it
}

// run runs vagrant and waits for its end.
func (l *lab) run(ctx context.Context, args ...string) error {
	_, err := l.output(ctx, args...)
	return err
}

func (l *lab) output(ctx context.Context, args ...string) ([]byte, error) {
	fmt.Fprintf(l.log, "\n$ vagrant %s\n", strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, l.vagrant, args...)
	cmd.Dir = l.dir
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it tidies up
	cmd.WaitDelay = time.Minute
	var out, all bytes.Buffer
	both := &inTurn{w: io.MultiWriter(&all, l.log)}
	cmd.Stdout = io.MultiWriter(&out, both)
	cmd.Stderr = both
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("vagrant %s: %w; its last words:\n%s", strings.Join(args, " "), err, tail(withoutCalls(all.String()), 15))
	}
	return out.Bytes(), nil
}

// withoutCalls drops the lines that say where in Vagrant's program an error was:
// they would hide what it was.
func withoutCalls(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if !strings.Contains(line, ":in `") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// inTurn lets two streams write to one place.
type inTurn struct {
	mu sync.Mutex
	w  io.Writer
}

func (t *inTurn) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.w.Write(p)
}

// tail is the last n lines of a text.
func tail(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// hosts are the machines that the Vagrantfile defines, with their present state.
func (l *lab) hosts(ctx context.Context) ([]host, error) {
	out, err := l.output(ctx, "status", "--machine-readable")
	if err != nil {
		return nil, err
	}
	hosts := parseStatus(out)
	if len(hosts) == 0 {
		return nil, errors.New("vagrant status names no machine: is there a Vagrantfile in -dir?")
	}
	return hosts, nil
}

// parseStatus reads the lines "time,machine,type,data" of vagrant status.
func parseStatus(out []byte) []host {
	var hosts []host
	at := map[string]int{}
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSpace(line), ",")
		if len(f) < 4 || f[1] == "" {
			continue
		}
		i, known := at[f[1]]
		if !known {
			i = len(hosts)
			at[f[1]] = i
			hosts = append(hosts, host{Name: f[1]})
		}
		switch f[2] {
		case "provider-name":
			hosts[i].Provider = f[3]
		case "state":
			hosts[i].State = f[3]
		}
	}
	return hosts
}

// learn asks vagrant how the named hosts are reached by ssh. A host that was made
// anew may have another address and key, so learn it again then.
func (l *lab) learn(ctx context.Context, names ...string) error {
	out, err := l.output(ctx, append([]string{"ssh-config"}, names...)...)
	if err != nil {
		return err
	}
	for name, section := range parseSSHConfig(out) {
		l.forget(name)
		if err := os.WriteFile(l.config(name), []byte(section), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// parseSSHConfig cuts a configuration of ssh into those of its hosts.
func parseSSHConfig(out []byte) map[string]string {
	sections := map[string]string{}
	var name string
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(s.Text()), "Host "); ok {
			name = strings.TrimSpace(rest)
		}
		if name != "" {
			sections[name] += s.Text() + "\n"
		}
	}
	return sections
}

func (l *lab) config(name string) string { return filepath.Join(l.tmp, name+".ssh") }

// ssh is a command of ssh for a host. All of them share one connection.
func (l *lab) ssh(ctx context.Context, name string, args ...string) *exec.Cmd {
	common := []string{
		"-F", l.config(name),
		"-o", "ControlMaster=auto", "-o", "ControlPersist=yes", "-o", "ControlPath=" + filepath.Join(l.tmp, "%n.sock"),
		"-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=6",
	}
	return exec.CommandContext(ctx, "ssh", append(common, args...)...)
}

// forget ends the shared connection to a host.
func (l *lab) forget(name string) {
	socket := filepath.Join(l.tmp, name+".sock")
	if _, err := os.Stat(socket); err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = l.ssh(ctx, name, "-O", "exit", name).Run() // it may be dead already
	os.Remove(socket)
}

// close ends all shared connections.
func (l *lab) close() {
	configs, _ := filepath.Glob(l.config("*"))
	for _, config := range configs {
		l.forget(strings.TrimSuffix(filepath.Base(config), ".ssh"))
	}
}

// on runs a shell command as root on a host and gives its output, which is right
// also when there is an error: many commands of chainmail say what they found by
// their exit code.
func (l *lab) on(ctx context.Context, name string, stdin io.Reader, command string) ([]byte, error) {
	cmd := l.ssh(ctx, name, name, "sudo", "sh", "-c", quote(command))
	cmd.Stdin = stdin
	cmd.WaitDelay = 5 * time.Second // the shared connection's process holds the pipes
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return out.Bytes(), fmt.Errorf("on %s: %s: %w: %s", name, command, err, tail(complaint.String(), 5))
	}
	return out.Bytes(), nil
}

// quote makes one word of a text for the shell at the other end.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }
