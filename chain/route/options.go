package route

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"regexp"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"chainmail/archive/record"
)

// Source is the archive whose mail is sent.
type Source interface {
	// Logs tells what the node holds now.
	Logs() []record.Log
	// Changed gives a channel that is closed when Logs says something new; it
	// must be asked for before Logs.
	Changed() <-chan struct{}
	Receipt(p record.Position) (record.Receipt, error)
	Body(h record.Hash) (io.ReadCloser, error)
	// Store is the log that the node writes.
	Store() record.StoreID
}

// TLSMode says how a route encrypts.
type TLSMode string

// From says with which mail a new route begins.
type From string

// The values of the enumerations. The zero value means the first of each.
const (
	// TLSStartTLS uses STARTTLS when the server offers it. The certificate is
	// checked only with a CA file, a TLSConfig or a password.
	TLSStartTLS TLSMode = "starttls"
	TLSRequired TLSMode = "required" // STARTTLS with a good certificate, or no mail
	TLSImplicit TLSMode = "implicit" // RFC 8314, from the first byte, and a good certificate
	TLSNone     TLSMode = "none"

	FromNow       From = "now"       // what is accepted from then on
	FromBeginning From = "beginning" // and all that the node holds
)

// Options is all that a Route needs. Name, Target, Dir and Source are required.
type Options struct {
	Name   string // stands in commands, metrics and the name of the cursor's file
	Target string // host:port

	TLS       TLSMode
	CAFile    string      // PEM, instead of the system's authorities
	TLSConfig *tls.Config // instead of CAFile; a missing ServerName is filled in

	// User and Password log in, by AUTH PLAIN or LOGIN, and under TLS with a
	// good certificate only.
	User     string
	Password string

	Own  bool // only what this node accepted itself, not what it was replicated
	From From // matters when the route has no cursor yet

	MaxRetries  int // of one mail, after the first attempt; then it is parked. 0: for ever
	Concurrency int // connections; 0 means 4

	Hostname  string // says EHLO; empty for the name of the machine
	Sender    string // instead of the envelope's; "<>" for the null sender
	Recipient string // instead of the envelope's

	Dir    string // where cursors are kept; it is made when missing
	Source Source

	// Dial opens connections; nil: a net.Dialer's.
	Dial       func(ctx context.Context, network, address string) (net.Conn, error)
	Logger     *slog.Logger          // nil: silent
	Registerer prometheus.Registerer // nil: metrics are not exported
}

const (
	defaultConcurrency = 4
	maxDeferred        = 1_000   // mails that wait for another attempt; beyond, no new one is begun
	maxUnreadable      = 100_000 // the same of mails that this node cannot read
	maxParked          = 10_000  // beyond, the route stops until someone looks
	maxPerConnection   = 100     // mails
)

var namePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// settle replaces zero values by what they mean and refuses what does not fit.
func (o *Options) settle() error {
	if !namePattern.MatchString(o.Name) {
		return fmt.Errorf("name %q: use up to 63 lower-case letters, digits, dots and dashes", o.Name)
	}
	if err := choose("tls", &o.TLS, TLSStartTLS, TLSRequired, TLSImplicit, TLSNone); err != nil {
		return err
	}
	if err := choose("from", &o.From, FromNow, FromBeginning); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(o.Target)
	switch {
	case err != nil || host == "" || port == "":
		return fmt.Errorf("target %q: write host:port, for example archive.example.com:25", o.Target)
	case o.MaxRetries < 0:
		return fmt.Errorf("max_retries is %d: use 0 for ever, or a positive number", o.MaxRetries)
	case o.Concurrency < 0:
		return fmt.Errorf("concurrency is %d: use 0 for the default, or a positive number", o.Concurrency)
	case o.User != "" && o.TLS == TLSNone:
		return fmt.Errorf("there is a user but tls is %q: a password goes under TLS only: set tls to %q", o.TLS, TLSRequired)
	case o.User == "" && o.Password != "":
		return errors.New("there is a password but no user")
	case o.Sender != "<>" && !sendable(o.Sender):
		return fmt.Errorf("sender %q has a control character", o.Sender)
	case !sendable(o.Recipient):
		return fmt.Errorf("recipient %q has a control character", o.Recipient)
	case o.Source == nil || o.Dir == "":
		return errors.New("route: Options.Source or Options.Dir is missing")
	}
	o.setDefaults()
	return o.settleTLS(host)
}

func (o *Options) setDefaults() {
	if o.Concurrency == 0 {
		o.Concurrency = defaultConcurrency
	}
	if o.Hostname == "" {
		if o.Hostname, _ = os.Hostname(); o.Hostname == "" {
			o.Hostname = "localhost"
		}
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// settleTLS makes the configuration that connections use.
func (o *Options) settleTLS(host string) error {
	config := o.TLSConfig.Clone() // of nil it is nil
	if config == nil {
		config = &tls.Config{}
		if o.CAFile != "" {
			pem, err := os.ReadFile(o.CAFile)
			if err != nil {
				return fmt.Errorf("CA file: %w", err)
			}
			config.RootCAs = x509.NewCertPool()
			if !config.RootCAs.AppendCertsFromPEM(pem) {
				return fmt.Errorf("CA file %s holds no certificate in PEM", o.CAFile)
			}
		} else if o.TLS == TLSStartTLS && o.User == "" {
			// Who takes no offence at plain text has nothing to gain from a
			// certificate (RFC 7435).
			config.InsecureSkipVerify = true
		}
	}
	if config.ServerName == "" {
		config.ServerName = host
	}
	o.TLSConfig = config
	return nil
}

// choose checks a value of an enumeration; its zero value is the first.
func choose[T ~string](key string, value *T, all ...T) error {
	if *value == "" {
		*value = all[0]
	}
	if !slices.Contains(all, *value) {
		return fmt.Errorf("%s is %q: use one of %q", key, *value, all)
	}
	return nil
}
