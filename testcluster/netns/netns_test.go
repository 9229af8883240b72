package netns

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"chainmail/archive/mail/mailtest"
)

// asOwner makes this program one that has a lab and waits to be killed.
const asOwner = "TEST_NETNS_OWNER"

func TestMain(m *testing.M) {
	if os.Getenv(asOwner) != "" {
		own()
		return
	}
	os.Exit(m.Run())
}

func own() {
	l, err := New(Host{"a", 1, both})
	if err != nil {
		fmt.Println(err)
		return
	}
	child := exec.Command("sleep", "600")
	if err := l.Start("a", child); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(l.Switch(), child.Process.Pid)
	select {}
}

var both = []Card{Front, Chain}

// need skips a test where there can be no hosts; where tests must not be
// skipped, that fails.
func need(t *testing.T) {
	t.Helper()
	switch err := Available(); {
	case err == nil:
	case os.Geteuid() == 0 && os.Getenv(mailtest.RequireVariable) == "1":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
}

func lab(t *testing.T, hosts ...Host) *Lab {
	t.Helper()
	need(t)
	l, err := New(hosts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if left := spaces(t, l.prefix); len(left) > 0 {
			t.Errorf("%s are left", left)
		}
	})
	return l
}

// spaces are the namespaces with a prefix.
func spaces(t *testing.T, prefix string) (names []string) {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(spacesDir, prefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// serve greets whoever connects to a host.
func serve(t *testing.T, l *Lab, card Card, host string) (addr string) {
	t.Helper()
	listener, err := l.Listen(host, "tcp", net.JoinHostPort(l.Addr(card, host).String(), "7"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(conn, conn); conn.Close() }()
		}
	}()
	return listener.Addr().String()
}

// reaches says whether a host connects to an address and gets an answer. Where
// it shall, there is time for the system to try again.
func reaches(t *testing.T, l *Lab, from, addr string, shall bool) error {
	t.Helper()
	patience := 300 * time.Millisecond
	if shall {
		patience = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := l.DialContext(ctx, from, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	return echoes(conn)
}

func echoes(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err
}

func TestHosts(t *testing.T) {
	l := lab(t, Host{"a", 1, both}, Host{"b", 2, both}, Host{"client", 200, []Card{Front}})
	if got := fmt.Sprint(l.Addr(Front, "a"), l.Addr(Chain, "b"), l.Addr(Chain, "client").IsValid()); got != "192.0.2.1 198.51.100.2 false" {
		t.Errorf("addresses %s", got)
	}
	front, chain := serve(t, l, Front, "a"), serve(t, l, Chain, "a")
	for _, tt := range []struct {
		from, to string
		want     bool
	}{
		{"a", front, true}, {"b", front, true}, {"b", chain, true}, {"client", front, true}, {"client", chain, false},
	} {
		if err := reaches(t, l, tt.from, tt.to, tt.want); (err == nil) != tt.want {
			t.Errorf("%s to %s: %v", tt.from, tt.to, err)
		}
	}
	conn, err := l.DialContext(t.Context(), "client", "tcp", front)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.LocalAddr().(*net.TCPAddr).IP.String(); got != "192.0.2.200" {
		t.Errorf("the client comes from %s", got)
	}
	if conn, err := net.DialTimeout("tcp", front, time.Second); err == nil {
		conn.Close()
		t.Error("the machine itself reaches a host")
	}
}

// TestTwoLabs: the same names and addresses twice, and nobody meets.
func TestTwoLabs(t *testing.T) {
	one, two := lab(t, Host{"a", 1, both}, Host{"b", 2, both}), lab(t, Host{"a", 1, both}, Host{"b", 2, both})
	addr := serve(t, one, Front, "a")
	if err := reaches(t, one, "b", addr, true); err != nil {
		t.Error(err)
	}
	if err := reaches(t, two, "b", addr, false); err == nil {
		t.Error("a host of another lab is reached")
	}
}

// TestFaults: what is done to one network, one pair and one direction is done
// to nothing else, and ends.
func TestFaults(t *testing.T) {
	l := lab(t, Host{"a", 1, both}, Host{"b", 2, both}, Host{"c", 3, both})
	addr := map[string]string{}
	for _, host := range []string{"a", "b", "c"} {
		for _, card := range both {
			addr[string(card)+" "+host] = serve(t, l, card, host)
		}
	}
	// want names the ways that are open, of those from b and c to a.
	check := func(t *testing.T, want ...string) {
		t.Helper()
		for _, card := range both {
			for _, from := range []string{"b", "c"} {
				name := string(card) + " " + from
				open := slices.Contains(want, name)
				if err := reaches(t, l, from, addr[string(card)+" a"], open); (err == nil) != open {
					t.Errorf("%s to a: %v, want it open: %t", name, err, open)
				}
			}
		}
	}
	for _, tt := range []struct {
		name string
		harm func() error
		open []string
		heal func() error
	}{
		{"cut", func() error { return l.Cut(Chain, "a", "b") }, []string{"front b", "front c", "chain c"}, func() error { return l.Heal(Chain, "b", "a") }},
		{"one way", func() error { return l.CutOneWay(Front, "a", "c") }, []string{"front b", "chain b", "chain c"}, l.HealAll},
		{"the other way", func() error { return l.CutOneWay(Front, "c", "a") }, []string{"front b", "chain b", "chain c"}, l.HealAll},
		{"isolated", func() error { return l.Isolate(Front, "a") }, []string{"chain b", "chain c"}, l.HealAll},
		{"unplugged", func() error { return l.Unplug(Chain, "a") }, []string{"front b", "front c"}, func() error { return l.Plug(Chain, "a") }},
		{"unplugged and healed", func() error { return l.Unplug(Front, "b") }, []string{"front c", "chain b", "chain c"}, l.HealAll},
		{"all lost", func() error { return l.Loss(Front, "a", 100) }, []string{"chain b", "chain c"}, func() error { return l.Loss(Front, "a", 0) }},
		{"nothing", func() error { return nil }, []string{"front b", "front c", "chain b", "chain c"}, l.HealAll},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.harm(); err != nil {
				t.Fatal(err)
			}
			check(t, tt.open...)
			if err := tt.heal(); err != nil {
				t.Fatal(err)
			}
			check(t, "front b", "front c", "chain b", "chain c")
		})
	}
	t.Run("open connections go on after a cut", func(t *testing.T) {
		conn, err := l.DialContext(t.Context(), "b", "tcp", addr["chain a"])
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := l.Cut(Chain, "a", "b"); err != nil {
			t.Fatal(err)
		}
		if err := echoes(conn); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a connection that was cut: %v", err)
		}
		if err := l.HealAll(); err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Errorf("a connection that was healed: %v", err)
		}
	})
	t.Run("the host sees a pulled cable", func(t *testing.T) {
		for _, out := range []bool{true, false} {
			if err := l.setLink(Chain, "a", out); err != nil {
				t.Fatal(err)
			}
			if up := running(t, l, "a", Chain); up == out {
				t.Errorf("unplugged %t: the card runs: %t", out, up)
			}
		}
	})
}

// running says whether a card has a carrier.
func running(t *testing.T, l *Lab, host string, card Card) (yes bool) {
	t.Helper()
	if err := l.Do(host, func() error {
		i, err := net.InterfaceByName(string(card))
		if err == nil {
			yes = i.Flags&net.FlagRunning != 0
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return yes
}

// TestLoss: about as many packets as asked for vanish, each way.
func TestLoss(t *testing.T) {
	const packets, percent = 2000, 30
	l := lab(t, Host{"a", 1, both}, Host{"b", 2, both})
	for _, lossy := range []string{"a", "b"} {
		if err := l.Loss(Front, lossy, percent); err != nil {
			t.Fatal(err)
		}
		got := deliver(t, l, packets)
		if want := packets * (100 - percent) / 100; got < want-150 || got > want+150 {
			t.Errorf("loss at %s: %d of %d packets arrived, want about %d", lossy, got, packets, want)
		}
		if err := l.HealAll(); err != nil {
			t.Fatal(err)
		}
	}
	if got := deliver(t, l, packets); got != packets {
		t.Errorf("%d of %d packets arrived without loss", got, packets)
	}
}

// deliver sends packets from a to b and counts those that arrive.
func deliver(t *testing.T, l *Lab, packets int) (arrived int) {
	t.Helper()
	var to net.PacketConn
	if err := l.Do("b", func() (err error) { to, err = net.ListenPacket("udp", "192.0.2.2:0"); return err }); err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	from, err := l.DialContext(t.Context(), "a", "udp", to.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	// With its address known, no packet waits for it and is given up.
	for range 100 {
		if _, err := from.Write([]byte("first")); err != nil {
			t.Fatal(err)
		}
		if _, ok := receive(t, to, 100*time.Millisecond); ok {
			break
		}
	}
	for range packets {
		if _, err := from.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		// One at a time, so that no queue overflows.
		if text, ok := receive(t, to, 0); ok && text == "x" {
			arrived++
		}
	}
	for {
		text, ok := receive(t, to, 200*time.Millisecond)
		if !ok {
			return arrived
		}
		if text == "x" {
			arrived++
		}
	}
}

func receive(t *testing.T, c net.PacketConn, wait time.Duration) (string, bool) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(max(wait, time.Microsecond))); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 10)
	n, _, err := c.ReadFrom(b)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return string(b[:n]), err == nil
}

// TestProcess: the process that is signalled is the program itself, on its host.
func TestProcess(t *testing.T) {
	l := lab(t, Host{"a", 1, both})
	cmd := exec.Command("sh", "-c", `echo $$; ip -brief address show chain; trap 'exit 7' TERM; echo; while :; do sleep 0.05; done`)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Start("a", cmd); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Scan()
	if lines.Text() != strconv.Itoa(cmd.Process.Pid) {
		t.Errorf("process %s, not %d", lines.Text(), cmd.Process.Pid)
	}
	lines.Scan()
	if !strings.Contains(lines.Text(), "198.51.100.1/24") {
		t.Errorf("it sees %q", lines.Text())
	}
	lines.Scan()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // ProcessState tells
	if code := cmd.ProcessState.ExitCode(); code != 7 {
		t.Errorf("ended with %v", cmd.ProcessState)
	}
}

// TestDeadOwner: the next one removes what a killed process left.
func TestDeadOwner(t *testing.T) {
	need(t)
	owner := exec.Command(os.Args[0])
	owner.Env = append(os.Environ(), asOwner+"=1")
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	var space string
	var child int
	if _, err := fmt.Sscan(line, &space, &child); err != nil {
		t.Fatalf("the owner said %q", line)
	}
	prefix := strings.TrimSuffix(space, switchName)
	if err := Clean(); err != nil {
		t.Error(err)
	}
	if got := spaces(t, prefix); len(got) != 2 {
		t.Errorf("while the owner lives, there are %s", got)
	}
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait() // it was killed
	if err := syscall.Kill(child, 0); err != nil {
		t.Fatalf("what the owner started: %v", err)
	}
	if err := Clean(); err != nil {
		t.Error(err)
	}
	if got := spaces(t, prefix); len(got) > 0 {
		t.Errorf("when the owner is dead, there are %s", got)
	}
	if !ended(child) {
		t.Error("what the owner started runs on")
	}
}

// ended: a zombie that nobody waits for has ended.
func ended(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(b), ") ")
	return err != nil || strings.HasPrefix(state, "Z")
}

func TestRefusals(t *testing.T) {
	l := lab(t, Host{"a", 1, both}, Host{"client", 200, []Card{Front}})
	for _, err := range []error{
		l.Cut(Front, "a", "x"), l.Cut(Chain, "a", "client"), l.Unplug(Chain, "client"), l.Loss(Front, "a", 101),
		l.Do("x", func() error { t.Error("called"); return nil }),
	} {
		if err == nil {
			t.Error("something that cannot be was done")
		}
	}
	for _, name := range []string{"", "switch", "UPPER", "a/b", "much2long4x"} {
		if bad, err := New(Host{name, 1, both}); err == nil {
			t.Errorf("there is a host %q", name)
			_ = bad.Close()
		}
	}
}

// TestHelp: what is missing is named, with what to do.
func TestHelp(t *testing.T) {
	if os.Geteuid() != 0 {
		if err := Available(); err == nil || !strings.Contains(err.Error(), "run this as root") {
			t.Errorf("not as root: %v", err)
		}
		return
	}
	if _, err := find("no-such-program"); err == nil {
		t.Error("a program was found that there is not")
	}
}
