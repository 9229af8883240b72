package lb

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"regexp"
	"strings"
	"sync"
	"time"
)

// localHeader begins a connection that the balancer opens for itself: PROXY
// protocol 2.2, version 2 with the command LOCAL and no addresses. Nodes that
// trust a balancer wait for a header before they greet.
const localHeader = "\r\n\r\n\x00\r\nQUIT\n" + "\x20\x00\x00\x00"

// greetTime is for the greeting of a node's SMTP port, with the connection.
const greetTime = time.Second

// maxGreeting is more than a reply line may have (RFC 5321 4.5.3.1.5).
const maxGreeting = 1024

// greeter asks nodes for the greeting of their SMTP port, at the address where
// mail is passed to. A node's HTTP port may be on another card and network, and
// says nothing of the way that mail takes.
type greeter struct {
	connect func(context.Context, Address) (net.Conn, error)

	mu      sync.Mutex
	greeted map[Address]bool // ports that did so once
}

// ask asks all nodes at once, but not those that leave, whose listeners may close
// at any time. The errors are by name; a node without one greeted.
func (g *greeter) ask(ctx context.Context, nodes []Node) map[string]error {
	ctx, cancel := context.WithTimeout(ctx, greetTime)
	defer cancel()
	var (
		mu     sync.Mutex
		failed = map[string]error{}
		wg     sync.WaitGroup
	)
	for _, n := range nodes {
		if n.Mail == Draining {
			continue
		}
		wg.Go(func() {
			if err := g.one(ctx, n.SMTP); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed[n.Name] = err
			}
		})
	}
	wg.Wait()
	return failed
}

func (g *greeter) one(ctx context.Context, a Address) error {
	conn, err := g.connect(ctx, a)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	greeting, err := greetingOf(conn)
	switch {
	case err == nil:
		g.remember(a)
		return refusal(greeting)
	case !g.known(a):
		return nil // perhaps it waits for TLS to begin, which is no concern of ours
	case ctx.Err() != nil:
		return fmt.Errorf("%s takes connections and does not greet within %v", a, greetTime)
	default:
		return fmt.Errorf("%s takes connections and does not greet: %w", a, err)
	}
}

// greetingOf reads the first line, and takes leave.
func greetingOf(conn net.Conn) (string, error) {
	if _, err := conn.Write([]byte(localHeader)); err != nil {
		return "", err
	}
	r := bufio.NewReaderSize(conn, maxGreeting)
	line, err := r.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	greeting := strings.TrimSpace(string(line))
	if _, err := conn.Write([]byte("QUIT\r\n")); err == nil {
		_, _ = r.ReadSlice('\n') // a socket that is closed with a reply unread is reset
	}
	return greeting, nil
}

var greetingPattern = regexp.MustCompile(`^[245][0-9]{2}([ -]|$)`)

// refusal is what a greeting says against mail. One that speaks of who connects,
// or of how many do (RFC 3463 3.8: security or policy), says nothing of the
// node: taking a busy node out would make the others busier.
func refusal(greeting string) error {
	switch {
	case !greetingPattern.MatchString(greeting):
		return fmt.Errorf("its greeting is not SMTP: %.80q", greeting)
	case greeting[0] == '4' && !strings.HasPrefix(greeting[3:], " 4.7."):
		return fmt.Errorf("it greets with %.80q", greeting)
	}
	return nil
}

func (g *greeter) remember(a Address) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.greeted == nil {
		g.greeted = map[Address]bool{}
	}
	g.greeted[a] = true
}

func (g *greeter) known(a Address) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.greeted[a]
}
