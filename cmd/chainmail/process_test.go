package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/smtp"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"chainmail/node/api"
	"chainmail/testcluster/support"
)

// process is the real program, running a node.
type process struct {
	*support.Process
	dataDir string
	smtp    string
}

func newDataDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "data")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// startNode starts a node and waits until it takes mail.
func startNode(t *testing.T, dataDir string) *process {
	t.Helper()
	p := &process{support.StartProgram(t, dataDir, "127.0.0.1:0"), dataDir, ""}
	var status api.Status
	out := p.run(t, exitOK, "status", "-o", "json")
	if err := json.Unmarshal(out, &status); err != nil {
		t.Fatal(err)
	}
	p.smtp = status.Listeners[0].Address
	return p
}

// run executes another command of the program on the node's directory and
// returns its output, of a failing one also what it says on standard error.
func (p *process) run(t *testing.T, code int, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), support.Program(t), append(args, "--data-dir", p.dataDir)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Fatalf("chainmail %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, code, out, stderr.Bytes())
	}
	if code != exitOK {
		out = append(out, stderr.Bytes()...)
	}
	return out
}

func (p *process) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.Cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// wait waits for the end of the process and returns its state.
func (p *process) wait(t *testing.T) *os.ProcessState {
	t.Helper()
	select {
	case <-p.Ended:
	case <-time.After(60 * time.Second):
		t.Fatal("the node does not end")
	}
	return p.Cmd.ProcessState
}

func (p *process) send(t *testing.T, text string) {
	t.Helper()
	if err := smtp.SendMail(p.smtp, nil, "ann@example.com", []string{"bob@example.com"}, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

// ids lists the messages of the node.
func (p *process) ids(t *testing.T) []string {
	t.Helper()
	var ids []string
	for d := json.NewDecoder(bytes.NewReader(p.run(t, exitOK, "list", "-o", "json"))); ; {
		var m api.Message
		err := d.Decode(&m)
		if errors.Is(err, io.EOF) {
			return ids
		}
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, m.SHA256)
	}
}

const mailText = "From: ann@example.com\r\nTo: bob@example.com\r\nSubject: Hello\r\n\r\n.leading dot\r\n\xff\x00 bytes\r\n"

func TestProcessKeepsMailThroughKill(t *testing.T) {
	p := startNode(t, newDataDir(t))
	p.send(t, mailText)
	p.signal(t, syscall.SIGKILL)
	p.wait(t)
	if out := p.run(t, exitOK, "verify"); !strings.Contains(string(out), "1 receipt checked") {
		t.Errorf("offline: %s", out)
	}
	p = startNode(t, p.dataDir)
	ids := p.ids(t)
	if len(ids) != 1 {
		t.Fatalf("%d messages", len(ids))
	}
	if got := p.run(t, exitOK, "get", ids[0][:8]); string(got) != mailText {
		t.Errorf("got %q, want %q", got, mailText)
	}
	p.run(t, exitOK, "verify", ids[0])
}

func TestProcessExportsAndImports(t *testing.T) {
	p := startNode(t, newDataDir(t))
	p.send(t, mailText)
	p.send(t, "Subject: Two\r\n\r\nFrom here on: no newline at the end")
	want := p.ids(t)
	for _, format := range []string{"eml", "mbox", "maildir", "zip"} {
		t.Run(format, func(t *testing.T) {
			out := filepath.Join(newDataDir(t), "out."+format)
			p.run(t, exitOK, "export", "--format", format, out)
			other := startNode(t, newDataDir(t))
			if got := other.run(t, exitOK, "import", out); !strings.HasPrefix(string(got), "2 messages added;") {
				t.Errorf("the first time: %s", got)
			}
			if got := other.run(t, exitOK, "import", out); !strings.HasPrefix(string(got), "0 messages added, 2 there already;") {
				t.Errorf("the second time: %s", got)
			}
			for _, id := range want {
				if got, sent := other.run(t, exitOK, "get", id), p.run(t, exitOK, "get", id); !bytes.Equal(got, sent) {
					t.Errorf("got %q, want %q", got, sent)
				}
			}
		})
	}
}

func TestProcessDrainsOnSIGTERM(t *testing.T) {
	p := startNode(t, newDataDir(t))
	idle, busy := support.Dial(t, p.smtp, "HELO client"), support.Dial(t, p.smtp, "HELO client")
	busy.Say("MAIL FROM:<ann@example.com>", "250")
	busy.Say("RCPT TO:<bob@example.com>", "250")
	busy.Say("DATA", "354")
	busy.Write([]byte(mailText[:30]))
	p.signal(t, syscall.SIGTERM)
	idle.Expect("421")
	busy.Write([]byte(strings.ReplaceAll(mailText[30:], "\r\n.", "\r\n..") + ".\r\n"))
	busy.Expect("250")
	if state := p.wait(t); state.ExitCode() != exitOK {
		t.Errorf("%v\n%s", state, p.Log.String())
	}
	p = startNode(t, p.dataDir)
	if ids := p.ids(t); len(ids) != 1 || string(p.run(t, exitOK, "get", ids[0])) != mailText {
		t.Errorf("the mail that was in flight is not there: %v", ids)
	}
}

func TestProcessEndsAtOnceOnASecondSignal(t *testing.T) {
	p := startNode(t, newDataDir(t))
	busy := support.Dial(t, p.smtp, "HELO client")
	busy.Say("MAIL FROM:<ann@example.com>", "250")
	busy.Say("RCPT TO:<bob@example.com>", "250")
	busy.Say("DATA", "354")
	idle := support.Dial(t, p.smtp, "HELO client")
	p.signal(t, syscall.SIGTERM)
	idle.Expect("421")
	p.signal(t, syscall.SIGTERM) // the echo of the first, such as make sends
	time.Sleep(echo + 200*time.Millisecond)
	select {
	case <-p.Ended:
		t.Fatal("the echo of the first signal ended it at once")
	default:
	}
	p.signal(t, syscall.SIGTERM)
	if code := p.wait(t).ExitCode(); code != 128+int(syscall.SIGTERM) {
		t.Errorf("exit code %d, want %d", code, 128+int(syscall.SIGTERM))
	}
}

func TestProcessRefusesASecondNode(t *testing.T) {
	p := startNode(t, newDataDir(t))
	out := string(p.run(t, exitFailed, "node", "--smtp", "127.0.0.1:0", "--http", "127.0.0.1:0",
		"--chain", "127.0.0.1:0", "--gossip", "127.0.0.1:0", "--raft", "127.0.0.1:0"))
	if strings.Count(out, "\n") != 1 || !strings.HasPrefix(out, "chainmail: ") || !strings.Contains(out, p.dataDir) {
		t.Errorf("not one line that names the directory: %s", out)
	}
	p.run(t, exitOK, "status")
}

func TestProcessTakesALoad(t *testing.T) {
	p := startNode(t, newDataDir(t))
	acked := filepath.Join(p.dataDir, "acked.txt")
	p.run(t, exitOK, "load", "--target", p.smtp, "--sessions", "4", "--size", "10KiB", "--count", "200", "--acked", acked)
	p.run(t, exitOK, "load", "--check", acked)
	if err := os.WriteFile(acked, []byte(strings.Repeat("0", 64)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.run(t, exitFailed, "load", "--check", acked)
}
