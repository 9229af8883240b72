package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"chainmail/archive"
	"chainmail/archive/mail"
	"chainmail/archive/record"
	"chainmail/chain"
	"chainmail/membership/ring"
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
		Origin:         n.config.Name,
		Disk:           n.options.Disk,
		Logger:         n.log,
		Registerer:     n.registry,
		MemoryInFlight: int64(l.MemoryInFlight),
		MemoryWait:     time.Duration(l.MemoryWait),
		MinFree:        int64(n.config.Disk.MinFree),
		ScrubPeriod:    time.Duration(n.config.Scrub.Period),
	}
}

func (n *Node) chainOptions() chain.Options {
	network := n.options.Network.complete()
	return chain.Options{
		Name:       n.config.Name,
		Version:    n.options.Version,
		Cluster:    n.members.Cluster(),
		Archive:    replica{n.archive},
		View:       n.reachableView,
		Alive:      n.members.Alive,
		Damaged:    n.damaged,
		ClientTLS:  n.members.ClientTLS,
		Dial:       func(ctx context.Context, address string) (net.Conn, error) { return network.Dial(ctx, "tcp", address) },
		MaxMessage: int64(n.config.Limits.MaxMessageSize),
		Logger:     n.log,
		Registerer: n.registry,
	}
}

// reachableView is the committed view, with the addresses at which live members
// say that they are reached now.
func (n *Node) reachableView() ring.View {
	v := n.members.View()
	v.Members = slices.Clone(v.Members)
	for i, m := range v.Members {
		v.Members[i].Addresses = n.members.AddressOf(m.Name)
	}
	return v
}

// damaged checks a receipt that could not be read to be sent: so it shows in
// status, is no longer held, and is given back by a peer.
func (n *Node) damaged(p record.Position) {
	if _, err := n.archive.Check(p); err != nil {
		n.log.Warn("a damaged receipt could not be checked", slog.String("position", p.String()), slog.Any("err", err))
	}
}

func (n *Node) httpOptions() (httpd.Options, error) {
	o := httpd.Options{
		Archive:        emptyArchive{},
		Begin:          n.beginImport,
		Status:         n.Status,
		Address:        n.config.HTTP,
		Socket:         SocketPath(n.config.DataDir),
		Tokens:         tokens{n},
		MaxMessageSize: int64(n.config.Limits.MaxMessageSize),
		ClusterTLS:     n.doorTLS(),
		PublicTLS:      n.members.PublicTLS(),
		Balancer:       n.isBalancer,
		Peer:           n.members.PeerOf,
		Cluster:        clusterDoor{n},
		Logger:         n.log,
		Registry:       n.registry,
	}
	if n.options.Network != nil {
		o.Listen = n.options.Network.Listen
	}
	if !n.witness() {
		o.Archive, o.Digests = n.archive, digests{n.archive}
	}
	if len(n.routes) > 0 {
		o.Routes = routes(n.routes)
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
	if n.witness() {
		return nil, errWitnessImport
	}
	if err := n.accepting(); err != nil {
		return nil, importRefused(err)
	}
	return importDraft{n.newDraft(ctx)}, nil
}

// importDraft is a draft whose refusals HTTP understands.
type importDraft struct{ *draft }

func (d importDraft) Commit(e record.Envelope) (record.Receipt, error) {
	r, err := d.draft.Commit(e)
	return r, importRefused(err)
}

// importRefused gives what the node says to mail servers its HTTP status.
func importRefused(err error) error {
	var hint string
	switch {
	case errors.Is(err, smtpd.ErrLeaving):
		hint = "import on another member: what was imported so far stays"
	case errors.Is(err, smtpd.ErrStarting), errors.Is(err, smtpd.ErrShort):
		hint = "repeat later: what was imported so far stays"
	default:
		return err
	}
	return &httpd.StatusError{Code: http.StatusServiceUnavailable, Text: err.Error(), Hint: hint}
}

func (n *Node) smtpOptions() (smtpd.Options, error) {
	l := n.config.Limits
	o := smtpd.Options{
		Hostname:         n.config.Name,
		Begin:            func(ctx context.Context) smtpd.Draft { return n.newDraft(ctx) },
		Accepting:        n.accepting,
		Balancer:         n.isBalancer,
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
	o.Connectors = append(o.Connectors, n.chainConnector())
	if n.options.Network != nil {
		o.Listen = n.options.Network.Listen
	}
	return o, nil
}

// isBalancer reports whether the cluster believes what a balancer at this
// address says of its clients.
func (n *Node) isBalancer(a netip.Addr) bool { return n.members.View().Policies.TrustsBalancer(a) }

// chainConnector is the door of the ring: peers are handed to the chain, and
// foreign servers that are allowed hand in mail.
func (n *Node) chainConnector() smtpd.Connector {
	return smtpd.Connector{
		Name:      chainConnector,
		Kind:      smtpd.KindChain,
		Address:   n.config.Chain,
		TLS:       smtpd.TLSStartTLS,
		TLSConfig: n.doorTLS(),
		Clients:   n.config.ChainAllow,
		Peer:      n.members.PeerOf,
		Serve:     n.servePeer,
	}
}

const chainConnector = "chain"

// servePeer hands a peer's connection to the chain, for as long as the
// certificate by which it came is that of a member.
func (n *Node) servePeer(ctx context.Context, conn net.Conn, peer string) {
	ctx, dismiss := context.WithCancel(ctx)
	defer dismiss()
	if secure, ok := conn.(*tls.Conn); ok {
		go n.dismissStranger(ctx, secure.ConnectionState(), dismiss)
	}
	n.chain.Serve(ctx, conn, peer)
}

// dismissStranger waits until a peer is no member any more, or ctx ends.
func (n *Node) dismissStranger(ctx context.Context, state tls.ConnectionState, dismiss context.CancelFunc) {
	for {
		changed := n.members.Changed()
		if _, err := n.members.PeerOf(state); err != nil {
			n.log.Info("connection of a peer ended: it is no member any more", slog.Any("err", err))
			dismiss()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// doorTLS is for doors at which others than members may knock, too. Who the
// client is, they ask when it wants something: so a node that was removed is
// told why it is refused, and does not only see a broken handshake.
func (n *Node) doorTLS() *tls.Config {
	c := n.members.ServerTLS()
	c.VerifyConnection = nil
	return c
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
	if n.smtp == nil {
		return all
	}
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
