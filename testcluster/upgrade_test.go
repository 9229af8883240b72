package testcluster

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"chainmail/archive/record"
	"chainmail/node"
	"chainmail/node/api"
	"chainmail/testcluster/netsim"
)

// The link between nodes, written a second time from docs/protocol.md and the
// comments of package chain, as another version of the program would have it:
// what the product and this disagree about is a break of compatibility.

// parcel is a container under construction.
type parcel struct{ bytes.Buffer }

func newParcel() *parcel {
	p := new(parcel)
	p.WriteString("chainmail container 1\n")
	return p
}

func (p *parcel) frame(kind byte, payload []byte) *parcel {
	p.Write(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(payload))))
	p.Write(payload)
	return p
}

func (p *parcel) log(l record.Log) *parcel {
	text, _ := json.Marshal(l) // of plain values
	return p.frame('L', text)
}

// receipt adds one; with a body, if it is not nil.
func (p *parcel) receipt(r record.Receipt, body []byte) *parcel {
	head := binary.BigEndian.AppendUint64(nil, uint64(r.Position.Store))
	head = binary.BigEndian.AppendUint64(head, uint64(r.Position.Seq))
	head = append(head, byte(min(1, len(body))))
	p.frame('R', record.AppendReceipt(head, &r))
	for chunk := range slices.Chunk(body, 128<<10) {
		p.frame('C', storedChunk(chunk))
	}
	return p
}

func (p *parcel) end() []byte {
	return p.frame('E', checksum(p.Bytes())).Bytes()
}

func checksum(b []byte) []byte {
	return binary.BigEndian.AppendUint32(nil, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

// storedChunk is a part of a body as archives keep it, uncompressed.
func storedChunk(raw []byte) []byte {
	rest := append(binary.AppendUvarint(nil, uint64(len(raw))), raw...)
	return slices.Concat([]byte{0}, checksum(rest), rest)
}

// receiptOf is one of a message, at any position.
func receiptOf(at record.Position, body record.BodyNo, text []byte) record.Receipt {
	return record.Receipt{
		Position: at, ReceivedAt: time.Now().UTC(), Hash: sha256.Sum256(text), Size: int64(len(text)), Body: body,
		Envelope: record.Envelope{From: "forged@example.org", To: []string{"x@example.org"}, Connector: "smtp"},
	}
}

// deliver makes a transaction of the link and gives its last reply.
func (d *dialogue) deliver(to string, body []byte) string {
	_, _ = fmt.Fprintf(d.Conn, "MAIL FROM:<%s@chain.invalid> BODY=BINARYMIME\r\nRCPT TO:<%s@chain.invalid>\r\nBDAT %d LAST\r\n", d.host, to, len(body))
	_, _ = d.Conn.Write(body)
	for range 2 {
		if r := d.reply(); !strings.HasPrefix(r, "250 ") {
			return r
		}
	}
	return d.reply()
}

// peerNode stands in for a member: at its address and with its certificate it
// speaks the link, in both directions, and keeps what it is sent in memory. It
// has no other port, so its gossip is dead and its HTTP silent.
type peerNode struct {
	visitor
	cluster  string
	versions string         // words after XCHAINMAIL
	extra    map[string]any // fields of hello, beside or instead of the usual ones
	words    string         // after the usual ones of replies to containers
	closed   chan struct{}  // when nothing is served any more
	serving  sync.WaitGroup
	listener net.Listener

	mu         sync.Mutex
	generation uint64
	logs       map[record.StoreID]record.Log
	bodies     map[record.Hash]bool // that came whole
	hellos     int
	conns      map[net.Conn]bool
}

// standIn stops a member and takes its place.
func (c *Cluster) standIn(t *testing.T, name, versions string) *peerNode {
	t.Helper()
	c.Stop(name)
	v, err := c.View(c.Running()[0])
	c.must(err, "look at the cluster")
	p := &peerNode{
		visitor: visitor{t, c, name, c.certificate(name)}, cluster: v.ID, versions: versions,
		closed: make(chan struct{}), logs: map[record.StoreID]record.Log{}, bodies: map[record.Hash]bool{}, conns: map[net.Conn]bool{},
	}
	p.listener, err = c.Net.Host(name).Listen("tcp", ":"+chainPort)
	c.must(err, "listen in the place of %s", name)
	p.serving.Go(p.accept)
	t.Cleanup(p.leave)
	return p
}

// leave ends it, so that the real node may start again.
func (p *peerNode) leave() {
	p.mu.Lock()
	select {
	case <-p.closed:
	default:
		close(p.closed)
		p.listener.Close()
		for conn := range p.conns {
			conn.Close()
		}
	}
	p.mu.Unlock()
	p.serving.Wait()
}

func (p *peerNode) accept() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		p.conns[conn] = true
		p.mu.Unlock()
		p.serving.Go(func() {
			defer conn.Close()
			_ = p.serve(conn) // it ends with the connection
		})
	}
}

// serve is the other end of a link's connection.
func (p *peerNode) serve(conn net.Conn) error {
	r := bufio.NewReader(conn)
	w := io.Writer(conn)
	_, _ = io.WriteString(w, "220 "+p.host+" ESMTP\r\n")
	to, secure := "", false
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		words := strings.Fields(line)
		verb := strings.ToUpper(words[0])
		answer := "250 2.0.0 ok"
		switch {
		case verb == "EHLO" && !secure:
			answer = "250-" + p.host + "\r\n250-XFUTURE 1 2 3\r\n250 STARTTLS"
		case verb == "EHLO":
			answer = "250-" + p.host + "\r\n250-PIPELINING\r\n250-XUNKNOWN words\r\n250-XCHAINMAIL " + p.versions + "\r\n250 BINARYMIME"
		case verb == "STARTTLS":
			_, _ = io.WriteString(w, "220 2.0.0 go\r\n")
			under := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{*p.cert}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13})
			if err := under.HandshakeContext(p.t.Context()); err != nil {
				return err
			}
			conn, r, w, secure = under, bufio.NewReader(under), under, true
			continue
		case verb == "RCPT":
			to, _, _ = strings.Cut(strings.TrimPrefix(words[1], "TO:<"), "@")
		case verb == "BDAT":
			if answer, err = p.body(r, words, to); err != nil {
				return err
			}
		case verb == "QUIT":
			answer = "221 2.0.0 bye"
		}
		if _, err := io.WriteString(w, answer+"\r\n"); err != nil || verb == "QUIT" {
			return err
		}
	}
}

// body takes a whole body, in as many parts as it comes.
func (p *peerNode) body(r *bufio.Reader, words []string, to string) (string, error) {
	size, err := strconv.Atoi(words[1])
	if err != nil {
		return "", err
	}
	text := make([]byte, size)
	if _, err := io.ReadFull(r, text); err != nil {
		return "", err
	}
	if len(words) < 3 {
		return "", errors.New("this peer takes a container in one part only")
	}
	if to == "hello" {
		return p.answerHello(text)
	}
	return p.take(text)
}

func (p *peerNode) answerHello(text []byte) (string, error) {
	var asked struct {
		Cluster, Node string
		Protocol      int
		Wait          int64 `json:"wait_ms"`
	}
	if err := json.Unmarshal(text, &asked); err != nil {
		return "", err
	}
	if asked.Cluster != p.cluster || asked.Protocol != 1 {
		p.t.Errorf("the hello to %s says %s", p.host, text)
	}
	pause := time.NewTimer(time.Duration(asked.Wait) * time.Millisecond)
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-p.closed:
		return "421 4.3.2 bye", nil
	}
	p.mu.Lock()
	p.hellos++
	p.mu.Unlock()
	said := string(p.hello())
	var lines []string
	for len(said) > 400 {
		lines, said = append(lines, "250-"+said[:400]), said[400:]
	}
	return strings.Join(append(lines, "250 "+said), "\r\n"), nil
}

// hello is what it says of itself.
func (p *peerNode) hello() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.generation++
	logs := []any{}
	for _, s := range slices.Sorted(maps.Keys(p.logs)) {
		logs = append(logs, p.logs[s])
	}
	said := map[string]any{
		"cluster": p.cluster, "node": p.host, "version": "another", "protocol": 1, "epoch": 1, "boot": "b00700",
		"generation": p.generation, "logs": logs, "time": time.Now().UTC(),
	}
	maps.Copy(said, p.extra)
	text, _ := json.Marshal(said) // of plain values
	return text
}

// take keeps what a container holds, and says what it has of it.
func (p *peerNode) take(text []byte) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	const magic = "chainmail container 1\n"
	rest, ok := bytes.CutPrefix(text, []byte(magic))
	if !ok {
		return "", fmt.Errorf("a container begins with %.30q", text)
	}
	touched := map[record.StoreID]bool{}
	var last record.Receipt
	var body int64 // bytes of it, as far as they are known
	for {
		kind, size := rest[0], binary.BigEndian.Uint32(rest[1:])
		payload := rest[5 : 5+size]
		if kind == 'E' {
			if !bytes.Equal(checksum(text[:len(text)-len(rest)]), payload) || len(rest) != 5+len(payload) {
				return "", errors.New("the end of a container is wrong")
			}
			break
		}
		rest = rest[5+size:]
		switch kind {
		case 'L':
			var l record.Log
			if err := json.Unmarshal(payload, &l); err != nil {
				return "", err
			}
			l.Held = p.logs[l.Store].Held
			p.logs[l.Store] = l
		case 'R':
			at := record.Position{Store: record.StoreID(binary.BigEndian.Uint64(payload)), Seq: record.Seq(binary.BigEndian.Uint64(payload[8:]))}
			var err error
			if last, err = record.DecodeReceipt(at, payload[17:]); err != nil {
				return "", err
			}
			l, known := p.logs[at.Store]
			if !known {
				return "", fmt.Errorf("receipt %v comes before its log", at)
			}
			l.Held = l.Held.Add(at.Seq)
			p.logs[at.Store], touched[at.Store], body = l, true, 0
		case 'C':
			length, _ := binary.Uvarint(payload[5:])
			if body += int64(length); body == last.Size {
				p.bodies[last.Hash] = true
			}
		}
	}
	p.generation++
	lines := []string{fmt.Sprintf("2.0.0 durable generation=%d boot=b00700%s", p.generation, p.words)}
	for _, s := range slices.Sorted(maps.Keys(touched)) {
		lines = append(lines, fmt.Sprintf("%v %v%s", s, p.logs[s].Held, p.words))
	}
	answer := ""
	for i, line := range lines {
		answer += "250" + map[bool]string{false: "-", true: " "}[i == len(lines)-1] + line + map[bool]string{false: "\r\n"}[i == len(lines)-1]
	}
	return answer, nil
}

// has says which acknowledged mail it was not given.
func (p *peerNode) has(acked []mail) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var problems []error
	for _, m := range acked {
		at, err := record.ParsePosition(m.position)
		if err != nil || !p.logs[at.Store].Held.Has(at.Seq) || !p.bodies[m.hash] {
			problems = append(problems, fmt.Errorf("mail %d at %s is not there", m.n, m.position))
		}
	}
	return few(problems)
}

// linkTo is how a node sees its link to another.
func (c *Cluster) linkTo(from, to string) (api.Link, error) {
	v, err := c.View(from)
	if err != nil {
		return api.Link{}, err
	}
	i := slices.IndexFunc(v.Members, func(m api.Member) bool { return m.Name == to })
	if i < 0 || v.Members[i].Link == nil {
		return api.Link{}, fmt.Errorf("%s knows no link to %s", from, to)
	}
	return *v.Members[i].Link, nil
}

// TestAnotherVersionOfTheLink: a node whose program says more than this one
// knows, and one that speaks later versions of the link besides, stay in the
// ring: mail flows to them and from them.
func TestAnotherVersionOfTheLink(t *testing.T) {
	for _, versions := range []string{"1 1", "1 3 and more"} {
		t.Run(versions, func(t *testing.T) {
			Virtual(t, Options{Nodes: 3, Replicas: All}, func(t *testing.T, c *Cluster) {
				c.Send("a", 20)
				p := c.standIn(t, "b", versions)
				p.extra = map[string]any{"colour": "green", "more": []any{map[string]any{"x": 1}}, "refuses": ""}
				p.words = " colour=green"
				c.Send("a", 20)
				c.Send("c", 20)
				c.Eventually(time.Minute, "the other version has all mail", func() error { return p.has(c.ledger.acknowledged()) })
				if l, err := c.linkTo("a", "b"); err != nil || l.State != "connected" || l.Problem != "" {
					t.Errorf("the link to it: %+v, %v", l, err)
				}

				// The other way: frames and fields that this version does not know.
				m := c.ledger.next("b")
				at := record.Position{Store: 0xb0b, Seq: 1}
				link := p.peer("a")
				defer link.Close()
				link.expect("250-", "EHLO b")
				if said := link.deliver("hello", p.hello()); !strings.HasPrefix(said, `250-{"cluster":"`+p.cluster) {
					t.Fatalf("its hello is answered %s", said)
				}
				container := newParcel().frame('Z', []byte("of the future")).
					log(record.Log{Store: at.Store, Origin: "b", Placements: []record.Placement{{From: 1, Nodes: []string{"b", "a", "c"}}}}).
					frame('z', nil).receipt(receiptOf(at, 1, m.text(1)), m.text(1)).frame('Q', make([]byte, 1<<20)).end()
				said := link.deliver("live", container)
				if lines := strings.Split(said, "|"); len(lines) != 2 || lines[1] != "250 "+at.Store.String()+" 1" {
					t.Fatalf("its container is answered %s", said)
				}
				c.ledger.acknowledge(m, at.String()) // it counts on it now
				c.Eventually(time.Minute, "its mail goes round", func() error { return c.Held("a", "c") })

				p.leave()
				link.Close()
				c.Start("b")
				c.Send("b", 5)
				c.Eventually(time.Minute, "b has what its stand-in was given", func() error { return c.Held("a", "b", "c") })
				c.Check()
			})
		})
	}
}

// TestVersionTooNew: a node that does not speak this version of the link at all
// is shown with the reason, and the others go on without it.
func TestVersionTooNew(t *testing.T) {
	Virtual(t, Options{Nodes: 3, Replicas: All, Copies: 2}, func(t *testing.T, c *Cluster) {
		p := c.standIn(t, "b", "2 2")
		const problem = "the peer speaks versions 2 to 2 of the link and this node 1 to 1: update the older of the two"
		for _, name := range []string{"a", "c"} {
			c.Eventually(time.Minute, name+" says why", func() error {
				if l, err := c.linkTo(name, "b"); err != nil || l.State != "refused" || l.Problem != problem {
					return fmt.Errorf("the link is %+v, %w", l, err)
				}
				return nil
			})
		}
		c.Eventually(time.Minute, "status tells people", func() error {
			if v, err := c.View("a"); err != nil || !strings.Contains(strings.Join(v.Reasons, "\n"), problem) {
				return fmt.Errorf("it is %s: %q, %w", v.Verdict, v.Reasons, err)
			}
			return nil
		})
		begin := time.Now()
		c.Send("a", 10)
		c.Send("c", 10)
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("20 mails took %v", took)
		}
		c.Eventually(time.Minute, "mail flows by the others", func() error { return c.Held("a", "c") })
		p.mu.Lock()
		if len(p.logs) > 0 || p.hellos > 0 {
			t.Errorf("it was spoken to in a version that it does not speak: %d logs, %d hellos", len(p.logs), p.hellos)
		}
		p.mu.Unlock()
		link := p.peer("a")
		defer link.Close()
		link.expect("250-", "EHLO b")
		p.extra = map[string]any{"protocol": 2}
		if said := link.deliver("hello", p.hello()); said != "554 5.5.4 this node speaks versions 1 to 1 of the link, not 2" {
			t.Errorf("its hello is answered %q", said)
		}
		p.leave()
		link.Close()
		c.Start("b")
		c.Check()
	})
}

// upgrade gives the program of a node another version from its next start on.
func (c *Cluster) upgrade(name, version string) { c.backend.(*virtual).machine(name).version = version }

// TestRollingUpgrade: under load, each node in turn is stopped as soon as it is
// said to be safe, and comes back with another version. Every such answer was
// true: without the node, all that was acknowledged is on others, mail is
// taken, and the cluster can be changed.
func TestRollingUpgrade(t *testing.T) {
	for _, how := range []string{"stopped", "killed"} {
		t.Run(how, func(t *testing.T) {
			Virtual(t, Options{Nodes: 3, Copies: 2, Replicas: All}, func(t *testing.T, c *Cluster) {
				for _, pair := range []string{"ab", "bc", "ca"} { // what was not waited for is not there yet
					c.Net.SetLink(pair[:1], pair[1:], netsim.Link{Latency: 30 * time.Millisecond})
				}
				stop := c.Load("a", "b", "c")
				time.Sleep(2 * time.Second)
				for i, name := range []string{"c", "a", "b"} {
					asked := []string{"a", "b", "c"}[(i+1)%3] // by another one each time
					if asked == name {
						asked = "c"
					}
					c.Eventually(time.Minute, "it is safe to stop "+name, func() error { return c.safeToStop(asked, name) })
					c.Send(name, 1) // to the last moment
					if how == "killed" {
						c.Kill(name)
					} else {
						c.Stop(name)
					}
					acked := c.ledger.acknowledged()
					others := c.Running(node.RoleData)
					c.nothingGoneWith(name, acked, others)
					time.Sleep(6 * time.Second) // gossip takes some to find out
					if err := c.safeToStop(others[0], others[1]); err == nil {
						t.Errorf("with %s away it is said to be safe to stop %s too", name, others[1])
					}
					for _, other := range others {
						c.Send(other, 3)
						v, err := c.View(other)
						if err != nil || !v.Quorum {
							t.Errorf("without %s, %s sees a quorum: %t, %v", name, other, v.Quorum, err)
						}
					}
					c.upgrade(name, "next")
					c.Start(name)
					c.Send(name, 3)
					c.versionsShown(i + 1)
				}
				time.Sleep(2 * time.Second)
				if k := stop(); k < 50 {
					t.Errorf("only %d mails were acknowledged under load", k)
				}
				c.Check()
				c.Eventually(time.Minute, "all is well", func() error {
					if v, err := c.View("a"); err != nil || v.Verdict != api.Green {
						return fmt.Errorf("it is %s: %q, %w", v.Verdict, v.Reasons, err)
					}
					return nil
				})
			})
		})
	}
}

// safeToStop asks one node whether another may be stopped: nil means yes.
func (c *Cluster) safeToStop(asked, name string) error {
	ctx, cancel := context.WithTimeout(c.checkContext(), 10*time.Second)
	defer cancel()
	s, err := c.Client(asked).SafeToStop(ctx, name)
	if err != nil || s.Safe {
		return err
	}
	return errors.New(strings.Join(s.Reasons, "; "))
}

// nothingGoneWith checks that every one of these mails is on another node.
func (c *Cluster) nothingGoneWith(name string, acked []mail, others []string) {
	c.t.Helper()
	all := map[string]inventory{}
	for _, other := range others {
		held, err := c.inventory(other)
		c.must(err, "list what %s holds", other)
		all[other] = held
	}
	if err := checkAcknowledged(all, acked, 1); err != nil {
		c.t.Errorf("it was not safe to stop %s: %v", name, err)
	}
}

// versionsShown checks that people are told while not all nodes run the same.
func (c *Cluster) versionsShown(upgraded int) {
	c.t.Helper()
	c.Eventually(time.Minute, "the versions are shown", func() error {
		v, err := c.View("b")
		if err != nil {
			return err
		}
		next := 0
		for _, m := range v.Members {
			if m.Self != nil && m.Self.Version == "next" && m.Version == "next" {
				next++
			}
		}
		told := strings.Contains(strings.Join(v.Reasons, "\n"), "upgrade all nodes, one after the other")
		if next != upgraded || told != (upgraded < 3) {
			return fmt.Errorf("%d of 3 are upgraded, %d are shown: %q", upgraded, next, v.Reasons)
		}
		return nil
	})
}
