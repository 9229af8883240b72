package smtpd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
)

// New checks the options and opens nothing. Its errors name the connector and
// say what to do.
func New(o Options) (*Server, error) {
	if o.Begin == nil {
		return nil, errors.New("smtpd: Options.Begin is missing")
	}
	if len(o.Connectors) == 0 {
		return nil, errors.New("no connector is configured: add one, for example with address :25")
	}
	if o.Hostname == "" {
		name, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("the machine has no host name: %w: set one", err)
		}
		o.Hostname = name
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Resolver == nil {
		o.Resolver = net.DefaultResolver
	}
	if o.Listen == nil {
		o.Listen = net.Listen
	}
	if err := o.Limits.check(); err != nil {
		return nil, err
	}
	o.Limits = o.Limits.withDefaults()
	s := &Server{
		opts:      o,
		log:       o.Logger,
		rates:     newRates(o.Limits.MessagesPerMinute),
		stopping:  make(chan struct{}),
		links:     map[*link]struct{}{},
		perClient: map[seat]int{},
	}
	s.life, s.end = context.WithCancel(context.Background())
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, err
	}
	for i, config := range o.Connectors {
		if slices.ContainsFunc(o.Connectors[:i], func(c Connector) bool { return c.Name == config.Name }) {
			return nil, fmt.Errorf("connector %q: another has the same name: rename one", config.Name)
		}
		c, err := newConnector(s, config, m)
		if err != nil {
			return nil, fmt.Errorf("connector %q: %w", config.Name, err)
		}
		s.connectors = append(s.connectors, c)
	}
	return s, nil
}

func (l Limits) check() error {
	for _, n := range []struct {
		name  string
		value float64
	}{
		{"max_message_size", float64(l.MaxMessageSize)},
		{"max_recipients", float64(l.MaxRecipients)},
		{"max_connections", float64(l.MaxConnections)},
		{"max_connections_per_client", float64(l.MaxConnectionsPerClient)},
		{"messages_per_minute", l.MessagesPerMinute},
		{"max_errors", float64(l.MaxErrors)},
		{"idle_timeout", l.IdleTimeout.Seconds()},
		{"drain_timeout", l.DrainTimeout.Seconds()},
	} {
		if n.value < 0 {
			return fmt.Errorf("limit %s is negative (%v): use 0 for the default, or a positive value", n.name, n.value)
		}
	}
	return nil
}

func newConnector(s *Server, config Connector, m *metrics) (*connector, error) {
	if config.Name == "" {
		return nil, errors.New("it has no name: give it one, receipts and metrics carry it")
	}
	c := &connector{Connector: config, server: s}
	if err := c.settle(); err != nil {
		return nil, err
	}
	var err error
	if c.clients, err = parseClientRules(config.Clients); err != nil {
		return nil, fmt.Errorf("clients: %w", err)
	}
	if c.senders, err = parseAddressRules(config.Senders); err != nil {
		return nil, fmt.Errorf("senders: %w", err)
	}
	if c.recipients, err = parseAddressRules(config.Recipients); err != nil {
		return nil, fmt.Errorf("recipients: %w", err)
	}
	if c.balancers, err = parsePrefixes(config.ProxyFrom); err != nil {
		return nil, fmt.Errorf("proxy_from: %w", err)
	}
	if c.Auth != AuthOff {
		if c.users, err = openUsers(config.Users, s.log); err != nil {
			return nil, err
		}
	}
	c.metrics = m.connector(c.Name)
	c.plain, c.secure = newFrame(c, false), newFrame(c, true)
	return c, nil
}

// settle replaces zero values by what they mean and refuses what does not fit.
func (c *connector) settle() error {
	if c.SocketMode == 0 {
		c.SocketMode = defaultSocketMode
	}
	if err := choose("kind", &c.Kind, KindSMTP, KindLMTP, KindChain); err != nil {
		return err
	}
	if c.Kind == KindChain && c.TLS == "" {
		c.TLS = TLSStartTLS
	}
	if err := choose("tls", &c.TLS, TLSNone, TLSStartTLS, TLSRequired, TLSImplicit); err != nil {
		return err
	}
	if err := choose("auth", &c.Auth, AuthOff, AuthOptional, AuthRequired); err != nil {
		return err
	}
	if err := choose("journal", &c.Journal, JournalNone, JournalExchange); err != nil {
		return err
	}
	network, address := c.network()
	switch {
	case address == "":
		return errors.New("it has no address: give it host:port, or unix:/path for a unix socket")
	case network == "tcp" && !isHostPort(address):
		return fmt.Errorf("address %q: write host:port, for example 127.0.0.1:2525, or unix:/path", c.Address)
	case c.TLS != TLSNone && c.TLSConfig == nil:
		return fmt.Errorf("tls is %q but there is no certificate: name the certificate and key files, or set tls to %q", c.TLS, TLSNone)
	case c.Auth != AuthOff && c.Users == "":
		return fmt.Errorf("auth is %q but there is no users file: make one with: htpasswd -B -c FILE USER", c.Auth)
	case c.Journal != JournalNone && c.server.opts.NewJournalParser == nil:
		return errors.New("smtpd: Options.NewJournalParser is missing")
	case c.Kind == KindChain:
		return c.settleChain(network)
	}
	return nil
}

func isHostPort(address string) bool {
	_, _, err := net.SplitHostPort(address)
	return err == nil
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
