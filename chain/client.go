package chain

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// The versions of the link that this program speaks, and how EHLO says so:
// "XCHAINMAIL <oldest> <newest>". Two nodes speak the newest that both do; so
// a node of the next version stays in the ring as long as it still speaks this
// one.
const (
	oldestProtocol = 1
	newestProtocol = 1
	keyword        = "XCHAINMAIL"
)

// client is a connection to a peer.
type client struct {
	conn     *tls.Conn
	r        *bufio.Reader
	w        *bufio.Writer
	self     string
	protocol int
	peer     hello // its first one, from when the connection was made
}

// unfitError is about a peer that answers but cannot be worked with: it will
// not mend itself in a second.
type unfitError string

func (e unfitError) Error() string { return string(e) }

func unfit(format string, args ...any) error { return unfitError(fmt.Sprintf(format, args...)) }

// connect makes a connection to a peer on which both have said hello.
func (c *Chain) connect(ctx context.Context, name, address string) (*client, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	plain, err := c.opts.Dial(ctx, address)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	_ = plain.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { plain.Close() })
	conn, err := c.greet(ctx, plain, name)
	if err != nil {
		plain.Close()
		return nil, err
	}
	if !stop() {
		plain.Close()
		return nil, context.Cause(ctx)
	}
	_ = plain.SetDeadline(time.Time{})
	return conn, nil
}

// greet is the conversation from the peer's greeting to its hello.
func (c *Chain) greet(ctx context.Context, plain net.Conn, name string) (*client, error) {
	cl := &client{r: bufio.NewReader(plain), w: bufio.NewWriter(plain), self: c.opts.Name}
	greeting, err := readReply(cl.r)
	if err != nil {
		return nil, overdue(err, "the greeting")
	}
	if !greeting.ok() {
		return nil, fmt.Errorf("the greeting: %w", greeting)
	}
	offers, err := cl.ehlo()
	if err != nil {
		return nil, err
	}
	if _, ok := offers["STARTTLS"]; !ok {
		return nil, unfit("there is no chainmail node at this address: it does not offer STARTTLS")
	}
	if _, err := cl.command("STARTTLS"); err != nil {
		return nil, err
	}
	if cl.r.Buffered() > 0 {
		return nil, unfit("text came between STARTTLS and TLS: somebody meddles with the connection")
	}
	cl.conn = tls.Client(plain, c.opts.ClientTLS(name))
	if err := cl.conn.HandshakeContext(ctx); err != nil {
		return nil, handshakeProblem(err)
	}
	cl.r, cl.w = bufio.NewReaderSize(cl.conn, 16<<10), bufio.NewWriterSize(cl.conn, 16<<10)
	if offers, err = cl.ehlo(); err != nil {
		return nil, handshakeProblem(err) // with TLS 1.3 a refused certificate shows here
	}
	words, offered := offers[keyword]
	if cl.protocol, err = negotiate(words, offered); err != nil {
		return nil, err
	}
	cl.peer, err = cl.hello(c.introduce(cl.protocol))
	if err == nil {
		err = c.check(cl.peer, name)
	}
	return cl, err
}

// handshakeProblem tells a refused certificate from a broken connection.
func handshakeProblem(err error) error {
	if _, refused := errors.AsType[tls.AlertError](err); refused {
		return unfit("the peer refuses this node's certificate: %v", err)
	}
	if verify, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return unfit("the peer's certificate is not right: %v", verify)
	}
	return overdue(err, "TLS")
}

// negotiate chooses the version of the link from what EHLO says.
func negotiate(words string, offered bool) (int, error) {
	if !offered {
		return 0, unfit("there is no chainmail node at this address, or it does not take this one for a node: it does not offer %s", keyword)
	}
	var oldest, newest int
	if n, _ := fmt.Sscanf(words, "%d %d", &oldest, &newest); n != 2 || oldest < 1 || newest < oldest {
		return 0, unfit("the peer says %.40q for the versions it speaks", keyword+" "+words)
	}
	if oldest > newestProtocol || newest < oldestProtocol {
		return 0, unfit("the peer speaks versions %d to %d of the link and this node %d to %d: update the older of the two", oldest, newest, oldestProtocol, newestProtocol)
	}
	return min(newest, newestProtocol), nil
}

// check checks that who answered is whom we wanted.
func (c *Chain) check(h hello, name string) error {
	switch {
	case h.Cluster != c.opts.Cluster:
		return unfit("the node at this address is of another cluster (%s, this one is %s)", h.Cluster, c.opts.Cluster)
	case h.Node != name:
		return unfit("the node at this address is %s: correct the address, or the name", h.Node)
	}
	return nil
}

// ehlo says who we are and gives the extensions offered, each with its words.
func (cl *client) ehlo() (map[string]string, error) {
	r, err := cl.command("EHLO " + cl.self)
	if err != nil {
		return nil, err
	}
	offers := map[string]string{}
	for _, line := range r.lines[1:] {
		word, rest, _ := strings.Cut(line, " ")
		offers[strings.ToUpper(word)] = rest
	}
	return offers, nil
}

// command sends a line and waits for its reply, which must be a good one.
func (cl *client) command(line string) (reply, error) {
	verb, _, _ := strings.Cut(line, " ")
	if _, err := cl.w.WriteString(line + "\r\n"); err != nil {
		return reply{}, overdue(err, verb)
	}
	if err := cl.w.Flush(); err != nil {
		return reply{}, overdue(err, verb)
	}
	r, err := readReply(cl.r)
	if err != nil {
		return reply{}, overdue(err, verb)
	}
	if !r.ok() {
		return reply{}, fmt.Errorf("%s: %w", verb, r)
	}
	return r, nil
}

// envelope is how a transaction begins.
func (cl *client) envelope(to string) string {
	return "MAIL FROM:<" + cl.self + "@" + mailDomain + "> BODY=BINARYMIME\r\nRCPT TO:<" + to + "@" + mailDomain + ">\r\n"
}

// hello exchanges holdings. The caller sets the deadlines.
func (cl *client) hello(h hello) (hello, error) {
	text, err := h.encode()
	if err != nil {
		return hello{}, err
	}
	fmt.Fprintf(cl.w, "%sBDAT %d LAST\r\n%s", cl.envelope(toHello), len(text), text)
	if err := cl.w.Flush(); err != nil {
		return hello{}, overdue(err, "hello")
	}
	var last reply
	for _, verb := range []string{"MAIL", "RCPT", "hello"} {
		if last, err = readReply(cl.r); err != nil {
			return hello{}, overdue(err, "the reply to "+verb)
		}
		if !last.ok() {
			return hello{}, fmt.Errorf("hello: %w", last)
		}
	}
	return parseHello([]byte(strings.Join(last.lines, "")))
}

// interrupt ends what waits for the peer.
func (cl *client) interrupt() { _ = cl.conn.SetDeadline(time.Unix(1, 0)) }

// quit says goodbye, if that goes quickly, and closes.
func (cl *client) quit() {
	_ = cl.conn.SetDeadline(time.Now().Add(farewell))
	_, _ = cl.conn.Write([]byte("QUIT\r\n"))
	cl.conn.Close()
}
