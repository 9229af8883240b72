package chain_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"chainmail/chain"
)

var update = flag.Bool("update", false, "write the golden files anew")

// recorded keeps what passes over a connection, after TLS.
type recorded struct {
	net.Conn
	mu       sync.Mutex
	from, to bytes.Buffer // the client
}

func (r *recorded) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.from.Write(b[:n])
	return n, err
}

func (r *recorded) Write(b []byte) (int, error) {
	r.mu.Lock()
	r.to.Write(b)
	r.mu.Unlock()
	return r.Conn.Write(b)
}

func (r *recorded) sent() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.from.String()
}

// transcript sets each command beside its reply. Bodies are shown as JSON or
// as a line for each frame of the container.
func (r *recorded) transcript(t *testing.T, hellos int) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out strings.Builder
	in, replies := r.from.String(), splitReplies(r.to.String())
	var body bytes.Buffer
	for in != "" && hellos >= 0 {
		line, rest, _ := strings.Cut(in, "\r\n")
		in = rest
		fmt.Fprintf(&out, "C: %s\n", line)
		var n int
		if _, err := fmt.Sscanf(line, "BDAT %d", &n); err == nil {
			body.WriteString(in[:n])
			in = in[n:]
			if strings.HasSuffix(line, "LAST") {
				out.WriteString(indent(describe(t, body.Bytes())))
				if bytes.HasPrefix(body.Bytes(), []byte("{")) {
					hellos--
				}
				body.Reset()
			}
		}
		if len(replies) == 0 {
			out.WriteString("   (none yet)\n")
			break
		}
		reply := replies[0]
		replies = replies[1:]
		if strings.HasPrefix(reply, "250-{") || strings.HasPrefix(reply, "250 {") {
			var text strings.Builder
			for l := range strings.Lines(reply) {
				text.WriteString(strings.TrimRight(l[4:], "\r\n"))
			}
			fmt.Fprintf(&out, "S: 250 (lines joined)\n%s", indent(describe(t, []byte(text.String()))))
			continue
		}
		for l := range strings.Lines(reply) {
			fmt.Fprintf(&out, "S: %s\n", strings.TrimRight(l, "\r\n"))
		}
	}
	return varying.ReplaceAllString(out.String(), "$1*")
}

// varying is what is not the same in each run.
var varying = regexp.MustCompile(`(generation=|boot=|"(?:generation|boot|time)": |BDAT )"?[^ ",\n]+"?`)

func splitReplies(s string) (all []string) {
	one := ""
	for line := range strings.Lines(s) {
		one += line
		if len(line) > 3 && line[3] == ' ' {
			all = append(all, one)
			one = ""
		}
	}
	return all
}

func describe(t *testing.T, body []byte) string {
	if bytes.HasPrefix(body, []byte("{")) {
		var out bytes.Buffer
		if err := json.Indent(&out, body, "", "  "); err != nil {
			t.Error(err)
		}
		return out.String()
	}
	lines, err := chain.ReadContainer(bytes.NewReader(body))
	if err != nil {
		t.Error(err)
	}
	return strings.Join(lines, "\n")
}

func indent(s string) string {
	return "   " + strings.ReplaceAll(s, "\n", "\n   ") + "\n"
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	file = filepath.Join("testdata", file)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (run with -update when it is meant to differ):\n%s", file, diff)
	}
}

// The link on the wire, as the peer receives it after STARTTLS.
func TestTranscripts(t *testing.T) {
	inCluster(t, "a b", policies(2, 2), func(t *testing.T, c *cluster) {
		a, b := c.nodes["a"], c.nodes["b"]
		b.kill()
		a.accept("history")
		a.accept("history")
		a.accept("more of it")
		var mu sync.Mutex
		var conns []*recorded
		b.wrap = func(conn net.Conn) net.Conn {
			r := &recorded{Conn: conn}
			mu.Lock()
			defer mu.Unlock()
			conns = append(conns, r)
			return r
		}
		c.start("b")
		c.linked()
		c.within(5*time.Second, "history is there", c.holds("b", a.archive.store, 1, 3))
		a.accept("new mail")
		c.within(5*time.Second, "new mail is there", c.holds("b", a.archive.store, 4, 4))
		time.Sleep(1500 * time.Millisecond)
		b.wrap = nil
		a.stop()
		time.Sleep(time.Second)
		mu.Lock()
		defer mu.Unlock()
		if len(conns) != 3 {
			t.Fatalf("%d connections", len(conns))
		}
		for _, r := range conns {
			switch sent := r.sent(); {
			case strings.Contains(sent, "<live@"):
				golden(t, "live.txt", r.transcript(t, 9))
			case strings.Contains(sent, "<bulk@"):
				golden(t, "bulk.txt", r.transcript(t, 9))
			default:
				golden(t, "control.txt", r.transcript(t, 1))
			}
		}
	})
}

// A container byte by byte: what other versions must be able to read.
func TestContainerBytes(t *testing.T) {
	golden(t, "container.txt", hex.Dump(chain.SampleContainer(t)))
}
