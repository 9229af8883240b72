package ring

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Sizes of what an operator may choose.
const (
	maxName       = 63
	maxCopies     = 16
	minAckTimeout = 100 * time.Millisecond
	maxAckTimeout = 5 * time.Minute // half of what SMTP clients wait for the answer to a mail (RFC 5321 4.5.3.2.6)
)

var namePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$`)

// CheckName says what is wrong with a member's name. Names appear in
// certificates, metrics, file names and SMTP greetings, so they are plain.
func CheckName(name string) error {
	switch {
	case name == "":
		return errors.New("a node needs a name: choose one with --name, for example the machine's host name")
	case len(name) > maxName:
		return fmt.Errorf("the name %q is %d characters long: choose one of at most %d", name, len(name), maxName)
	case !namePattern.MatchString(name):
		return fmt.Errorf("%q cannot be a node's name: use lower-case letters, digits, dots, hyphens and underscores, with a letter or digit first and last", name)
	}
	return nil
}

// Check says what is wrong with policies.
func (p Policies) Check() error {
	var problems []error
	say := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if p.Copies < 1 || p.Copies > maxCopies {
		say("copies=%d: want 1 to %d, the node's own copy included", p.Copies, maxCopies)
	}
	if p.Replicas < 0 {
		say("replicas=%d: want the number of nodes that keep each mail, or 0 for all", p.Replicas)
	}
	if p.Replicas > 0 && p.Copies > p.Replicas {
		say("copies=%d is more than replicas=%d: no more nodes than the replicas keep a mail; raise replicas or lower copies", p.Copies, p.Replicas)
	}
	if p.WhenShort != Accept && p.WhenShort != Tempfail {
		say("when_short=%q: want %q (250, counted and shown) or %q (451)", p.WhenShort, Accept, Tempfail)
	}
	if p.AckTimeout < minAckTimeout || p.AckTimeout > maxAckTimeout {
		say("ack_timeout=%v: want %v to %v", p.AckTimeout, minAckTimeout, maxAckTimeout)
	}
	if p.BackfillRate < 0 {
		say("backfill_rate=%d: want bytes a second, or 0 for no bound", p.BackfillRate)
	}
	if canonical, err := ParseBalancers(p.Balancers); err != nil {
		problems = append(problems, err)
	} else if !slices.Equal(canonical, p.Balancers) {
		say("balancers=%s: want them in order, each once, as %s", strings.Join(p.Balancers, ","), strings.Join(canonical, ","))
	}
	return errors.Join(problems...)
}

// Check says what is wrong with a view that came from a disk or a network.
func (v View) Check() error {
	if v.Cluster == "" || v.Epoch == 0 {
		return errors.New("a view needs a cluster and an epoch from 1")
	}
	names, ids := map[string]bool{}, map[string]bool{}
	for _, m := range v.Members {
		if err := CheckName(m.Name); err != nil {
			return err
		}
		if names[m.Name] || m.ID == "" || ids[m.ID] {
			return fmt.Errorf("member %s: its name and its ID must be there once", m.Name)
		}
		names[m.Name], ids[m.ID] = true, true
		if m.Role != Data && m.Role != Witness {
			return fmt.Errorf("member %s: role %q is not known", m.Name, m.Role)
		}
		if m.State != Joining && m.State != Active && m.State != Draining {
			return fmt.Errorf("member %s: state %q is not known", m.Name, m.State)
		}
	}
	return v.Policies.Check()
}
