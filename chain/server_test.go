package chain_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"chainmail/chain"
	"chainmail/membership/ring"
)

// talk serves a connection of peer b on node a and gives its other end.
func talk(c *cluster) (net.Conn, <-chan struct{}) {
	done := make(chan struct{})
	var other net.Conn
	c.net.mu.Lock()
	c.net.listeners["script"] = func(conn net.Conn) { other = conn }
	c.net.mu.Unlock()
	conn, err := c.net.dial(context.Background(), "b-script", "script")
	if err != nil {
		c.t.Fatal(err)
	}
	c.within(time.Second, "a connection", func() bool { return other != nil })
	go func() {
		defer close(done)
		c.nodes["a"].chain.Serve(context.Background(), other, "b")
	}()
	return conn, done
}

const helloBody = `{"cluster":"` + clusterID + `","node":"b","protocol":1,"boot":"b007","generation":1,"logs":[]}`

// say is a transaction.
func say(to, body string) string {
	return fmt.Sprintf("MAIL FROM:<b@chain.invalid> BODY=BINARYMIME\r\nRCPT TO:<%s@chain.invalid>\r\nBDAT %d LAST\r\n%s", to, len(body), body)
}

// codes gives the code and the enhanced code of each reply until the server
// ends the connection.
func codes(conn net.Conn) string {
	var all []string
	for r := bufio.NewScanner(conn); r.Scan(); {
		if line := r.Text(); len(line) > 3 && line[3] == ' ' {
			words := strings.Fields(line)
			switch {
			case len(words) > 1 && strings.Count(words[1], ".") == 2:
				all = append(all, words[0]+" "+words[1])
			default:
				all = append(all, words[0])
			}
		}
	}
	return strings.Join(all, ", ")
}

func TestServerDialogues(t *testing.T) {
	hello := "EHLO b\r\n" + say("hello", helloBody)
	for name, tt := range map[string]struct{ says, want string }{
		"goodbye":                      {"EHLO b\r\nQUIT\r\n", "250, 221 2.0.0"},
		"unknown commands":             {"HELO b\r\nVRFY x\r\nDATA\r\nNOOP\r\nAUTH PLAIN x\r\nSTARTTLS\r\nQUIT\r\n", "502 5.5.1, 502 5.5.1, 502 5.5.1, 250 2.0.0, 502 5.5.1, 502 5.5.1, 221 2.0.0"},
		"MAIL before EHLO":             {"MAIL FROM:<b@chain.invalid> BODY=BINARYMIME\r\nQUIT\r\n", "503 5.5.1, 221 2.0.0"},
		"another one's name":           {"EHLO b\r\nMAIL FROM:<c@chain.invalid> BODY=BINARYMIME\r\nQUIT\r\n", "250, 554 5.7.1, 221 2.0.0"},
		"real mail":                    {"EHLO b\r\nMAIL FROM:<b@example.org>\r\nRCPT TO:<x@example.org>\r\nQUIT\r\n", "250, 501 5.5.4, 503 5.5.1, 221 2.0.0"},
		"without BINARYMIME":           {"EHLO b\r\nMAIL FROM:<b@chain.invalid>\r\nQUIT\r\n", "250, 501 5.5.4, 221 2.0.0"},
		"unknown recipient":            {"EHLO b\r\nMAIL FROM:<b@chain.invalid> BODY=BINARYMIME\r\nRCPT TO:<root@chain.invalid>\r\nQUIT\r\n", "250, 250 2.1.0, 550 5.1.1, 221 2.0.0"},
		"live before hello":            {"EHLO b\r\n" + say("live", "x") + "QUIT\r\n", "250, 250 2.1.0, 503 5.5.1, 503 5.5.1, 221 2.0.0"},
		"in any case":                  {"ehlo b\r\nmail from:<b@chain.invalid> body=binarymime\r\nrcpt to:<hello@chain.invalid>\r\nbdat 2 last\r\n{}quit\r\n", "250, 250 2.1.0, 250 2.1.5, 554 5.5.2, 221 2.0.0"},
		"hello":                        {hello + "QUIT\r\n", "250, 250 2.1.0, 250 2.1.5, 250, 221 2.0.0"},
		"another cluster":              {"EHLO b\r\n" + say("hello", strings.Replace(helloBody, "0123", "9999", 1)) + say("live", "x") + "QUIT\r\n", "250, 250 2.1.0, 250 2.1.5, 554 5.7.1, 250 2.1.0, 503 5.5.1, 503 5.5.1, 221 2.0.0"},
		"another node in hello":        {"EHLO b\r\n" + say("hello", strings.Replace(helloBody, `"b"`, `"c"`, 1)) + "QUIT\r\n", "250, 250 2.1.0, 250 2.1.5, 554 5.7.1, 221 2.0.0"},
		"a version that is not spoken": {"EHLO b\r\n" + say("hello", strings.Replace(helloBody, `"protocol":1`, `"protocol":2`, 1)) + "QUIT\r\n", "250, 250 2.1.0, 250 2.1.5, 554 5.5.4, 221 2.0.0"},
		"no container":                 {hello + say("live", "From: a") + "NOOP\r\nQUIT\r\n", "250, 250 2.1.0, 250 2.1.5, 250, 250 2.1.0, 250 2.1.5, 554 5.5.2, 250 2.0.0, 221 2.0.0"},
		"two recipients":               {"EHLO b\r\nMAIL FROM:<b@chain.invalid> BODY=BINARYMIME\r\nRCPT TO:<hello@chain.invalid>\r\nRCPT TO:<hello@chain.invalid>\r\nRSET\r\nQUIT\r\n", "250, 250 2.1.0, 250 2.1.5, 503 5.5.1, 250 2.0.0, 221 2.0.0"},
		"BDAT out of nowhere":          {"EHLO b\r\nBDAT 6 LAST\r\nQUIT\r\nQUIT\r\n", "250, 503 5.5.1, 221 2.0.0"},
		"BDAT without a size":          {"EHLO b\r\nBDAT\r\nQUIT\r\n", "250, 501 5.5.4"},
		"BDAT of 32 GB":                {"EHLO b\r\nBDAT 33554433000\r\nQUIT\r\n", "250, 501 5.5.4"},
		"a refused part":               {hello + "MAIL FROM:<b@chain.invalid> BODY=BINARYMIME\r\nRCPT TO:<live@chain.invalid>\r\nBDAT 30\r\n" + strings.Repeat("x", 30) + "BDAT 4\r\nNOOPBDAT 4 LAST\r\nQUITQUIT\r\n", "250, 250 2.1.0, 250 2.1.5, 250, 250 2.1.0, 250 2.1.5, 554 5.5.2, 503 5.5.1, 503 5.5.1, 221 2.0.0"},
		"taken back":                   {hello + "MAIL FROM:<b@chain.invalid> BODY=BINARYMIME\r\nRCPT TO:<live@chain.invalid>\r\nBDAT 4\r\nchaiRSET\r\n" + say("hello", helloBody) + "QUIT\r\n", "250, 250 2.1.0, 250 2.1.5, 250, 250 2.1.0, 250 2.1.5, 250 2.0.0, 250 2.0.0, 250 2.1.0, 250 2.1.5, 250, 221 2.0.0"},
		"a new MAIL within a body":     {hello + "MAIL FROM:<b@chain.invalid> BODY=BINARYMIME\r\nRCPT TO:<live@chain.invalid>\r\nBDAT 4\r\nchaiMAIL FROM:<b@chain.invalid> BODY=BINARYMIME\r\nQUIT\r\n", "250, 250 2.1.0, 250 2.1.5, 250, 250 2.1.0, 250 2.1.5, 250 2.0.0, 503 5.5.1, 221 2.0.0"},
		"a line without end":           {strings.Repeat("x", 2000), "500 5.5.2"},
		"too many errors":              {strings.Repeat("FOO\r\n", 30), strings.Repeat("502 5.5.1, ", 20) + "421 4.7.0"},
		"cut off":                      {hello + "MAIL FROM:<b@chain.invalid> BODY=BINARYMIME\r\nRCPT TO:<live@chain.invalid>\r\nBDAT 100 LAST\r\nchainmail", "250, 250 2.1.0, 250 2.1.5, 250, 250 2.1.0, 250 2.1.5"},
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, "a", policies(1, 1), func(t *testing.T, c *cluster) {
				conn, done := talk(c)
				go func() {
					_, _ = io.WriteString(conn, tt.says)
					_ = conn.(interface{ CloseWrite() error }).CloseWrite()
				}()
				if got := codes(conn); got != tt.want {
					t.Errorf("\n got %s\nwant %s", got, tt.want)
				}
				<-done
				conn.Close()
			})
		})
	}
}

func TestServerLetsSilentPeersGo(t *testing.T) {
	inCluster(t, "a", policies(1, 1), func(t *testing.T, c *cluster) {
		conn, done := talk(c)
		begin := time.Now()
		<-done
		if took := time.Since(begin); took != time.Minute {
			t.Errorf("after %v", took)
		}
		conn.Close()
	})
}

func TestServerBoundsConnections(t *testing.T) {
	inCluster(t, "a", policies(1, 1), func(t *testing.T, c *cluster) {
		var conns []net.Conn
		for range 16 {
			conn, _ := talk(c)
			conns = append(conns, conn)
		}
		conn, done := talk(c)
		if got := codes(conn); got != "421 4.3.2" {
			t.Errorf("the seventeenth: %s", got)
		}
		<-done
		for _, conn := range append(conns, conn) {
			conn.Close()
		}
		time.Sleep(time.Second)
		conn, done = talk(c)
		fmt.Fprint(conn, "QUIT\r\n")
		if got := codes(conn); got != "221 2.0.0" {
			t.Errorf("afterwards: %s", got)
		}
		<-done
		conn.Close()
	})
}

// A long poll ends when something changes, if it is eager; when its time is
// over; and when the node stops, at once.
func TestLongPoll(t *testing.T) {
	inCluster(t, "a", policies(1, 1), func(t *testing.T, c *cluster) {
		conn, done := talk(c)
		r := bufio.NewReader(conn)
		reply := func() time.Duration {
			begin := time.Now()
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					t.Fatal(err)
				}
				if line[3] == ' ' && (strings.Contains(line, "}") || line[0] != '2') {
					return time.Since(begin)
				}
			}
		}
		poll := func(fields string) string {
			return say("hello", strings.Replace(helloBody, `"generation":1`, `"generation":1,`+fields, 1))
		}
		fmt.Fprint(conn, "EHLO b\r\n"+poll(`"wait_ms":0`))
		reply()
		fmt.Fprint(conn, poll(`"wait_ms":1000`))
		time.AfterFunc(300*time.Millisecond, func() { c.nodes["a"].archive.add([]byte("x")) })
		if took := reply(); took != time.Second {
			t.Errorf("patient: after %v", took)
		}
		fmt.Fprint(conn, poll(`"wait_ms":1000,"eager":true`))
		time.AfterFunc(300*time.Millisecond, func() { c.nodes["a"].archive.add([]byte("y")) })
		if took := reply(); took < 300*time.Millisecond || took > 310*time.Millisecond {
			t.Errorf("eager: after %v", took)
		}
		c.nodes["a"].archive.add([]byte("between two polls"))
		fmt.Fprint(conn, poll(`"wait_ms":1000,"eager":true`))
		if took := reply(); took > 10*time.Millisecond {
			t.Errorf("what changed between two polls: after %v", took)
		}
		fmt.Fprint(conn, poll(`"wait_ms":10000`))
		time.AfterFunc(300*time.Millisecond, c.nodes["a"].cancel)
		if took := reply(); took > 310*time.Millisecond {
			t.Errorf("stopping: after %v", took)
		}
		<-done
		conn.Close()
	})
}

// otherNode answers a's calls as a node b that says other things.
func otherNode(c *cluster, answer func(r *bufio.Reader, conn net.Conn)) {
	c.nodes["b"].stop()
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	c.net.listeners["b"] = func(conn net.Conn) {
		defer conn.Close()
		(&node{name: "b", c: c, serve: func(conn net.Conn) { answer(bufio.NewReader(conn), conn) }}).frontDoor(context.Background(), conn)
	}
}

func TestVersions(t *testing.T) {
	for words, want := range map[string]string{
		"250-b\r\n250 XCHAINMAIL 2 2\r\n": "peer speaks versions 2 to 2 of the link and this node 1 to 1: update the older of the two",
		"250-b\r\n250 PIPELINING\r\n":     "it does not offer XCHAINMAIL",
		"554 5.7.1 not you\r\n":           "EHLO: 554 5.7.1 not you",
	} {
		inCluster(t, "a b", policies(2, 2), func(t *testing.T, c *cluster) {
			otherNode(c, func(r *bufio.Reader, conn net.Conn) {
				_, _ = r.ReadString('\n')
				fmt.Fprint(conn, words)
				_, _ = r.ReadString('\n')
			})
			c.within(20*time.Second, "the reason is told", func() bool {
				l := c.nodes["a"].peer("b").Link
				return l.State == chain.StateRefused && strings.Contains(l.Problem, want) && !l.Live
			})
		})
	}
}

// A node of the next version, which still speaks this one, is understood.
func TestNextVersion(t *testing.T) {
	inCluster(t, "a b", policies(1, 2), func(t *testing.T, c *cluster) {
		otherNode(c, func(r *bufio.Reader, conn net.Conn) {
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				var n int
				switch {
				case strings.HasPrefix(line, "EHLO"):
					fmt.Fprint(conn, "250-b\r\n250-XNEWER 5\r\n250-XCHAINMAIL 1 2 3\r\n250 PIPELINING\r\n")
				case strings.HasPrefix(line, "BDAT"):
					_, _ = fmt.Sscanf(line, "BDAT %d", &n)
					_, _ = io.CopyN(io.Discard, r, int64(n))
					fmt.Fprint(conn, "250 "+strings.Replace(helloBody, "{", `{"later":{"a":1},`, 1)+"\r\n")
				default:
					fmt.Fprint(conn, "250 2.0.0 ok\r\n")
				}
			}
		})
		c.linkedTo("a", "b")
		if p := c.nodes["a"].peer("b"); p.Boot != "b007" {
			t.Errorf("%+v", p)
		}
	})
}

func TestStrangersAtTheAddress(t *testing.T) {
	inCluster(t, "a b c", policies(2, 3), func(t *testing.T, c *cluster) {
		c.linked()
		c.change(func(v *ring.View) { v.Members[1].Addresses.Chain = "c" })
		c.within(10*time.Second, "the certificate is of another", func() bool {
			l := c.nodes["a"].peer("b").Link
			return l.State == chain.StateRefused && strings.Contains(l.Problem, "certificate")
		})
		c.change(func(v *ring.View) { v.Members[1].Addresses.Chain = "" })
		c.within(10*time.Second, "no address", func() bool { return c.nodes["a"].peer("b").Link.State == chain.StateDisabled })
		c.change(func(v *ring.View) { v.Members[1].Addresses.Chain = "b" })
		c.linked()
		c.change(func(v *ring.View) { v.Members = v.Members[:2] })
		c.within(time.Second, "a member that left is no peer", func() bool { return len(c.nodes["a"].chain.Status().Peers) == 1 })
	})
}
