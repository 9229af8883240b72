package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"chainmail/node"
	"chainmail/node/api"
	"chainmail/node/client"
)

// supervisor is the systemd that started this process as a unit of Type=notify,
// or another program that listens on $NOTIFY_SOCKET: see sd_notify(3). Where
// nobody listens, every method does nothing.
type supervisor struct {
	send     func(state string) // nil: nobody listens
	watchdog time.Duration      // it must hear of us this often; 0: it does not care

	mu   sync.Mutex
	said string // the last STATUS
}

const (
	// lookEvery is how often the supervisor is told how we are, and gets a sign
	// of life, if it does not want that more often.
	lookEvery = 10 * time.Second
	// openingLimit is for how long the opening of a node may put off the time-out
	// of its start: an archive of any size is open by then, or hangs.
	openingLimit = 15 * time.Minute
	// closingTime is what a node takes to end after its mail in flight has
	// finished: to leave the cluster's gossip, and to close the archive.
	closingTime = time.Minute
)

// newSupervisor finds the supervisor of this process in its environment.
func newSupervisor() *supervisor {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return &supervisor{}
	}
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		watchdog = 0 // the variables are not meant for us
	}
	send := func(state string) { _, _ = daemon.SdNotify(false, state) } // one that does not listen cannot be told so
	return &supervisor{send: send, watchdog: watchdog}
}

// present reports whether somebody listens.
func (s *supervisor) present() bool { return s.send != nil }

func (s *supervisor) tell(format string, args ...any) {
	if s.present() {
		s.send(fmt.Sprintf(format, args...))
	}
}

// ready ends the start: what depends on this unit is started now.
func (s *supervisor) ready(status string) { s.report("READY=1\n", status) }

// stopping begins the end.
func (s *supervisor) stopping(status string) { s.report("STOPPING=1\n", status) }

// status is the line that systemctl status shows; only changes are sent.
func (s *supervisor) status(text string) {
	s.mu.Lock()
	changed := s.said != text
	s.mu.Unlock()
	if changed {
		s.report("", text)
	}
}

// report sends a status together with what happened, so that who waits for the
// one finds the other.
func (s *supervisor) report(event, status string) {
	s.mu.Lock()
	s.said = status
	s.mu.Unlock()
	s.tell("%sSTATUS=%s", event, sanitize(status))
}

// alive is a sign of life.
func (s *supervisor) alive() {
	if s.watchdog > 0 {
		s.tell("WATCHDOG=1")
	}
}

// look says in a line how the program is. Its error means that it does not
// work.
type look func(context.Context) (status string, err error)

// interval leaves the watchdog three chances.
func (s *supervisor) interval() time.Duration {
	if s.watchdog > 0 {
		return min(lookEvery, s.watchdog/3)
	}
	return lookEvery
}

// watch tells the supervisor how the program is, until the context ends. A sign
// of life is given only when it looks well in time: what hangs is started again.
func (s *supervisor) watch(ctx context.Context, look look) {
	if !s.present() {
		return
	}
	bound := max(s.interval(), s.watchdog/3)
	for {
		one, cancel := context.WithTimeout(ctx, bound)
		status, err := look(one)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			s.alive()
		default:
			status = "does not answer: " + err.Error()
		}
		s.status(status)
		if !pause(ctx, s.interval()) {
			return
		}
	}
}

// extend puts off the time-out of the start or the stop, for at most as long as
// is said, until the context ends.
func (s *supervisor) extend(ctx context.Context, most time.Duration) {
	if !s.present() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for {
		s.tell("EXTEND_TIMEOUT_USEC=%d", (3 * s.interval()).Microseconds())
		s.alive()
		if !pause(ctx, s.interval()) {
			return
		}
	}
}

// pause waits, and reports whether the context still goes on.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// life is what a supervisor follows from the start of a program to its end.
type life struct {
	opening string          // what is done until it is ready
	ready   <-chan struct{} // closed then
	look    look
	closing string        // what is done when it is asked to end
	drain   time.Duration // how long that may take
}

// follow tells the supervisor of all of a life that ends soon after the
// context. The program says with ended that it is over, and why.
func (s *supervisor) follow(ctx context.Context, l life) (ended func(error)) {
	if !s.present() {
		return func(error) {}
	}
	over, end := context.WithCancel(context.WithoutCancel(ctx))
	var all sync.WaitGroup
	all.Go(func() {
		asked, cancel := context.WithCancel(ctx)
		defer cancel()
		context.AfterFunc(over, cancel)

		opening, opened := context.WithCancel(asked)
		all.Go(func() {
			defer opened()
			select {
			case <-l.ready:
			case <-opening.Done():
			}
		})
		s.status(l.opening)
		s.extend(opening, openingLimit)
		select {
		case <-l.ready:
			status, _ := l.look(asked) // at worst nothing is said yet
			s.ready(status)
			s.watch(asked, l.look)
		case <-asked.Done():
		}
		if over.Err() == nil {
			s.stopping(l.closing)
			s.extend(over, l.drain)
		}
	})
	return func(err error) {
		end()
		all.Wait()
		if err != nil {
			s.status("failed: " + firstLine(err.Error()))
		}
	}
}

// followNode follows the life of a node. What an operator asks it by its admin
// socket is what tells whether it works.
func (s *supervisor) followNode(ctx context.Context, config node.Config, ready <-chan struct{}) (ended func(error)) {
	c := client.New(node.SocketPath(config.DataDir))
	return s.follow(ctx, life{
		opening: "opening " + config.DataDir,
		ready:   ready,
		look: func(ctx context.Context) (string, error) {
			defer c.Close() // a new connection each time: that it takes one is half of the answer
			status, err := c.Status(ctx)
			return summary(config.Role, status), err
		},
		closing: "stopping: mail in flight finishes",
		drain:   time.Duration(config.Limits.DrainTimeout) + closingTime,
	})
}

// summary is a node's status in a line.
func summary(role node.Role, s api.Status) string {
	line := s.State
	if s.Reason != "" {
		line += ": " + s.Reason
	}
	if role == node.RoleWitness {
		return line + "; votes, keeps no mail"
	}
	line += fmt.Sprintf("; %s, %s free", plural(s.Messages, "mail"), humanSize(s.Disk.Free))
	if bad := s.Scrub.Bad; bad > 0 {
		line += fmt.Sprintf("; %s DAMAGED", plural(bad, "receipt"))
	}
	return line
}
