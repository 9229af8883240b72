package testcluster_test

import (
	"bufio"
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// pulse asks a service again and again, however long an answer takes: a client
// that connects while nobody is there waits longer than that is so, since its
// system offers the connection again after 1, 3 and 7 s only.
type pulse struct {
	cancel context.CancelFunc
	asking sync.WaitGroup

	mu   sync.Mutex
	last time.Time // that a question was begun which was answered
	said pulseReport
}

// pulseReport is what became of all questions.
type pulseReport struct {
	away     time.Duration // the longest time in which nobody who asked was answered
	slowest  time.Duration // answer
	answered int
	failures []string
}

// newPulse asks until the end of the test, or of the pulse.
func newPulse(t *testing.T, ask func(context.Context) error) *pulse {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	p := &pulse{cancel: cancel, last: time.Now()}
	p.asking.Go(func() {
		tick := time.NewTicker(40 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			p.asking.Go(func() {
				begun := time.Now()
				err := ask(context.WithoutCancel(ctx)) // what is begun is finished
				p.note(begun, err)
			})
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	})
	return p
}

func (p *pulse) note(begun time.Time, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.said.failures = append(p.said.failures, err.Error())
		return
	}
	p.said.answered++
	p.said.slowest = max(p.said.slowest, time.Since(begun))
	p.said.away = max(p.said.away, begun.Sub(p.last))
	if begun.After(p.last) {
		p.last = begun
	}
}

// end stops it and tells what was seen.
func (p *pulse) end() pulseReport {
	ended := time.Now()
	p.cancel()
	p.asking.Wait()
	p.said.away = max(p.said.away, ended.Sub(p.last))
	return p.said
}

// greetingPatience is how long those who ask for a greeting wait at most.
const greetingPatience = 3 * time.Second

// greeting connects, for the greeting of a node, and says goodbye.
func greeting(ctx context.Context, addr string, dial func(ctx context.Context, addr string) (net.Conn, error)) error {
	ctx, cancel := context.WithTimeout(ctx, greetingPatience)
	defer cancel()
	conn, err := dial(ctx, addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && !strings.HasPrefix(line, "220 ") {
		err = errors.New(line)
	}
	if err == nil {
		_, err = conn.Write([]byte("QUIT\r\n"))
	}
	return err
}
