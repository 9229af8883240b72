package load

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// Options say what to send where. Zero values mean the defaults given.
type Options struct {
	Target   string        // host:port, or the path of a unix socket
	Sessions int           // connections at a time; 1
	Size     int           // bytes of a message; 4096
	Count    int64         // how many mails to begin; 0: no limit
	Duration time.Duration // begin no mail after this; 0: no limit
	Rate     float64       // mails per second over all sessions; 0: as fast as they go

	// PerSession is how many mails go over one connection before the next one is
	// opened, as mail servers do; 0: no limit.
	PerSession int

	BDAT        bool        // send by BDAT (RFC 3030) instead of DATA
	LMTP        bool        // speak LMTP (RFC 2033)
	TLS         *tls.Config // nil: no TLS. Without a ServerName it is the host of Target.
	ImplicitTLS bool        // with TLS: from the first byte, instead of after STARTTLS

	From       string // reverse path; load@load.example
	To         string // forward path; archive@load.example
	Recipients int    // forward paths of a mail; 1. More than one are numbered: archive+1@, archive+2@, …

	// Seed decides the messages: mail n of a run is Message(Seed, n, Size).
	// 0 takes a random one, so that two runs do not send the same mail twice.
	Seed uint64

	Attempts int           // how often a mail is offered that is refused with 4xx; 5
	Patience time.Duration // how long a session tries to connect again before the run fails; 30 s
	Timeout  time.Duration // how long one mail may take; 60 s

	// Acked gets the SHA-256 of every acknowledged message, 64 hexadecimal
	// digits and a newline, in one Write as soon as the answer was read. Give
	// it a file, not a buffer, so that a crash loses no line. nil: nothing is
	// hashed.
	Acked io.Writer

	// Progress, unless nil, is called about five times a second and once at
	// the end, by one goroutine.
	Progress func(Progress)
}

// Progress is how far a run is.
type Progress struct {
	Acked   int64 // mails
	Bytes   int64 // of these mails
	Elapsed time.Duration
}

// withDefaults checks o and fills in what was left out.
func (o Options) withDefaults() (Options, error) {
	setDefault(&o.Sessions, 1)
	setDefault(&o.Size, 4096)
	setDefault(&o.From, "load@"+loadDomain)
	setDefault(&o.To, "archive@"+loadDomain)
	setDefault(&o.Recipients, 1)
	setDefault(&o.Attempts, 5)
	setDefault(&o.Patience, 30*time.Second)
	setDefault(&o.Timeout, time.Minute)
	switch {
	case o.Target == "":
		return o, errors.New("no target: give the host:port of an SMTP server")
	case o.Sessions < 1 || o.Size < 1 || o.Recipients < 1 || o.Attempts < 1:
		return o, fmt.Errorf("sessions %d, size %d, recipients %d, attempts %d: each must be at least 1", o.Sessions, o.Size, o.Recipients, o.Attempts)
	case o.Count < 0 || o.Duration < 0 || o.Rate < 0 || o.PerSession < 0 || o.Patience < 0 || o.Timeout < 0:
		return o, fmt.Errorf("count %d, duration %v, rate %v, per session %d, patience %v, timeout %v: none may be negative", o.Count, o.Duration, o.Rate, o.PerSession, o.Patience, o.Timeout)
	case strings.ContainsAny(o.From+o.To, "<>\r\n "):
		return o, fmt.Errorf("from %q, to %q: give bare addresses without brackets or spaces", o.From, o.To)
	}
	if o.Seed == 0 {
		var b [8]byte
		_, _ = rand.Read(b[:])                       // never fails
		o.Seed = binary.BigEndian.Uint64(b[:]) >> 11 // 53 bits: every reader of JSON keeps them
	}
	if o.TLS != nil && o.TLS.ServerName == "" {
		o.TLS = o.TLS.Clone()
		o.TLS.ServerName = o.Target
		if host, _, err := net.SplitHostPort(o.Target); err == nil {
			o.TLS.ServerName = host
		}
	}
	return o, nil
}

func setDefault[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}

// envelope is the MAIL command and all RCPT commands of a mail.
func (o *Options) envelope() []byte {
	e := fmt.Appendf(nil, "MAIL FROM:<%s>\r\n", o.From)
	if o.Recipients == 1 {
		return fmt.Appendf(e, "RCPT TO:<%s>\r\n", o.To)
	}
	local, domain, _ := strings.Cut(o.To, "@")
	for i := range o.Recipients {
		e = fmt.Appendf(e, "RCPT TO:<%s+%d@%s>\r\n", local, i+1, domain)
	}
	return e
}
