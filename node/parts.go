package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"chainmail/archive"
	"chainmail/archive/mail"
	"chainmail/archive/record"
	"chainmail/node/api"
	"chainmail/node/certs"
	"chainmail/node/httpd"
	"chainmail/node/smtpd"
)

// The parts know nothing of one another and nothing of Config: here is said
// what each of them is given.

func (n *Node) archiveOptions() archive.Options {
	l := n.config.Limits
	return archive.Options{
		Dir:            ArchiveDir(n.config.DataDir),
		Logger:         n.log,
		Registerer:     n.registry,
		MemoryInFlight: int64(l.MemoryInFlight),
		MemoryWait:     time.Duration(l.MemoryWait),
		MinFree:        int64(n.config.Disk.MinFree),
		ScrubPeriod:    time.Duration(n.config.Scrub.Period),
	}
}

func (n *Node) httpOptions() (httpd.Options, error) {
	o := httpd.Options{
		Archive:        n.archive,
		Begin:          n.beginImport,
		Status:         n.Status,
		Address:        n.config.HTTP,
		Socket:         SocketPath(n.config.DataDir),
		Tokens:         httpd.DefaultTokens(n.config.DataDir),
		MaxMessageSize: int64(n.config.Limits.MaxMessageSize),
		Logger:         n.log,
		Registry:       n.registry,
	}
	var err error
	if pair := n.config.HTTPTLS; pair.Cert != "" {
		if o.TLS, err = certs.Config(pair.Cert, pair.Key, n.log); err != nil {
			err = fmt.Errorf("http_tls: %w", err)
		}
	}
	return o, err
}

func (n *Node) beginImport(ctx context.Context) (httpd.Draft, error) {
	if err := n.archive.Accepting(); err != nil {
		return nil, err
	}
	return n.archive.NewDraft(ctx), nil
}

func (n *Node) smtpOptions() (smtpd.Options, error) {
	l := n.config.Limits
	o := smtpd.Options{
		Hostname:         n.config.Name,
		Begin:            func(ctx context.Context) smtpd.Draft { return n.archive.NewDraft(ctx) },
		Accepting:        n.archive.Accepting,
		NewJournalParser: func() smtpd.JournalParser { return journalParser{mail.NewJournalParser()} },
		Logger:           n.log,
		Registerer:       n.registry,
		Limits: smtpd.Limits{
			MaxMessageSize:          int64(l.MaxMessageSize),
			MaxRecipients:           l.MaxRecipients,
			MaxConnections:          l.MaxConnections,
			MaxConnectionsPerClient: l.MaxConnectionsPerClient,
			MessagesPerMinute:       l.RatePerClient,
			IdleTimeout:             time.Duration(l.IdleTimeout),
			DrainTimeout:            time.Duration(l.DrainTimeout),
		},
	}
	for _, k := range n.config.Connectors {
		c, err := n.connector(k)
		if err != nil {
			return o, err
		}
		o.Connectors = append(o.Connectors, c)
	}
	return o, nil
}

func (n *Node) connector(k Connector) (c smtpd.Connector, err error) {
	c = smtpd.Connector{
		Name:       k.Name,
		Kind:       smtpd.Kind(k.Kind),
		Address:    k.Listen,
		TLS:        smtpd.TLSMode(k.TLS.Mode),
		Auth:       smtpd.AuthMode(k.Auth.Mode),
		Users:      k.Auth.Users,
		Journal:    smtpd.Journal(k.Journal),
		Clients:    k.Allow.Clients,
		Senders:    k.Allow.Senders,
		Recipients: k.Allow.Recipients,
		ProxyFrom:  k.ProxyProtocol.Trusted,
	}
	if k.TLS.Mode != TLSNone {
		if c.TLSConfig, err = certs.Config(k.TLS.Cert, k.TLS.Key, n.log); err != nil {
			err = fmt.Errorf("connector %q: %w", k.Name, err)
		}
	}
	return c, err
}

func (n *Node) listeners() []api.Listener {
	var all []api.Listener
	for _, l := range n.smtp.Listeners() {
		all = append(all, api.Listener{Name: l.Name, Kind: string(l.Kind), Address: l.Address, Connections: l.Connections})
	}
	return all
}

// journalParser tells smtpd apart what is no journal report and what is a
// damaged one.
type journalParser struct{ *mail.JournalParser }

func (p journalParser) Close() (*record.Journal, error) {
	j, err := p.JournalParser.Close()
	if errors.Is(err, mail.ErrNotJournal) {
		err = nil
	}
	return j, err
}
