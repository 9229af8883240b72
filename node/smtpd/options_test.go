package smtpd_test

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chainmail/node/smtpd"
)

func TestOptionsThatAreRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "users"), []byte("a:plain\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "empty"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	connector := func(change func(*smtpd.Connector)) func(*smtpd.Options) {
		return func(o *smtpd.Options) { change(&o.Connectors[0]) }
	}
	for _, tt := range []struct {
		change func(*smtpd.Options)
		want   string
	}{
		{func(o *smtpd.Options) { o.Connectors = nil }, `no connector is configured: add one, for example with address :25`},
		{func(o *smtpd.Options) { o.Connectors = append(o.Connectors, o.Connectors[0]) }, `connector "smtp": another has the same name: rename one`},
		{func(o *smtpd.Options) { o.Limits.MaxRecipients = -1 }, `limit max_recipients is negative (-1): use 0 for the default, or a positive value`},
		{connector(func(c *smtpd.Connector) { c.Name = "" }), `connector "": it has no name: give it one, receipts and metrics carry it`},
		{connector(func(c *smtpd.Connector) { c.Address = "" }), `connector "smtp": it has no address: give it host:port, or unix:/path for a unix socket`},
		{connector(func(c *smtpd.Connector) { c.Address = "25" }), `connector "smtp": address "25": write host:port, for example 127.0.0.1:2525, or unix:/path`},
		{connector(func(c *smtpd.Connector) { c.Kind = "pop3" }), `connector "smtp": kind is "pop3": use one of ["smtp" "lmtp" "chain"]`},
		{connector(func(c *smtpd.Connector) { c.TLS = smtpd.TLSStartTLS }), `connector "smtp": tls is "starttls" but there is no certificate: name the certificate and key files, or set tls to "none"`},
		{connector(func(c *smtpd.Connector) { c.Auth = smtpd.AuthRequired }), `connector "smtp": auth is "required" but there is no users file: make one with: htpasswd -B -c FILE USER`},
		{connector(func(c *smtpd.Connector) { c.Kind = smtpd.KindChain }), `connector "smtp": tls is "starttls" but there is no certificate: name the certificate and key files, or set tls to "none"`},
		{connector(func(c *smtpd.Connector) { c.Kind, c.TLS = smtpd.KindChain, smtpd.TLSNone }), `connector "smtp": tls is "none": nodes come by STARTTLS: use "starttls" or "required"`},
		{
			connector(func(c *smtpd.Connector) {
				c.Kind, c.TLSConfig, c.Address = smtpd.KindChain, &tls.Config{}, "unix:/run/x"
			}),
			`connector "smtp": address "unix:/run/x": nodes come by TCP: write host:port`,
		},
		{connector(func(c *smtpd.Connector) { c.Kind, c.TLSConfig = smtpd.KindChain, &tls.Config{} }), `connector "smtp": smtpd: Connector.Peer or Connector.Serve is missing`},
		{
			connector(func(c *smtpd.Connector) { c.Auth, c.Users = smtpd.AuthRequired, filepath.Join(dir, "users") }),
			`connector "smtp": users file DIR/users: line 1 is not USER:BCRYPT-HASH: set a password with: htpasswd -B FILE USER`,
		},
		{
			connector(func(c *smtpd.Connector) { c.Auth, c.Users = smtpd.AuthRequired, filepath.Join(dir, "empty") }),
			`connector "smtp": users file DIR/empty: no user in the file: set a password with: htpasswd -B FILE USER`,
		},
		{
			connector(func(c *smtpd.Connector) { c.Auth, c.Users = smtpd.AuthRequired, filepath.Join(dir, "none") }),
			`connector "smtp": users file: stat DIR/none: no such file or directory: make it with: htpasswd -B -c DIR/none USER`,
		},
		{
			connector(func(c *smtpd.Connector) { c.Clients = []string{"10.0.0.0/33"} }),
			`connector "smtp": clients: "10.0.0.0/33" is no IP address, CIDR block or domain: write for example 192.0.2.7, 10.0.0.0/8, 2001:db8::/32 or mail.example.com`,
		},
		{
			connector(func(c *smtpd.Connector) { c.Senders = []string{"a@"} }),
			`connector "smtp": senders: "a@" is no address or domain: write for example journal@example.com, example.com, or <> for the null sender`,
		},
		{
			connector(func(c *smtpd.Connector) { c.Recipients = []string{"a b"} }),
			`connector "smtp": recipients: "a b" is no address or domain: write for example journal@example.com, example.com, or <> for the null sender`,
		},
		{
			connector(func(c *smtpd.Connector) { c.ProxyFrom = []string{"lb.example.com"} }),
			`connector "smtp": proxy_from: "lb.example.com" is no IP address or CIDR block: write for example 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32`,
		},
	} {
		o := smtpd.Options{
			Connectors: []smtpd.Connector{{Name: "smtp", Address: "127.0.0.1:0"}},
			Begin:      func(context.Context) smtpd.Draft { return nil },
		}
		tt.change(&o)
		_, err := smtpd.New(o)
		if err == nil {
			t.Errorf("accepted, want %s", tt.want)
		} else if got := strings.ReplaceAll(err.Error(), dir, "DIR"); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
}

func TestAddressInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	s, err := smtpd.New(smtpd.Options{
		Begin: func(context.Context) smtpd.Draft { return nil },
		Connectors: []smtpd.Connector{
			{Name: "free", Address: "127.0.0.1:0"},
			{Name: "taken", Address: taken.Addr().String(), TLS: smtpd.TLSImplicit, TLSConfig: &tls.Config{}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), `connector "taken": cannot listen on `+taken.Addr().String()) {
		t.Errorf("got %v", err)
	}
	if got := s.Listeners(); got[0].Address != "127.0.0.1:0" {
		t.Errorf("the other listener is left open at %s", got[0].Address)
	}
}

func TestListeners(t *testing.T) {
	s := start(t, func(o *smtpd.Options) {
		o.Connectors = []smtpd.Connector{{Name: "a", Address: "127.0.0.1:0"}, {Name: "b", Kind: smtpd.KindLMTP, Address: "127.0.0.1:0"}}
	})
	s.hello()
	all := s.Listeners()
	if len(all) != 2 || all[0].Name != "a" || all[0].Kind != smtpd.KindSMTP || all[0].Connections != 1 ||
		all[1].Name != "b" || all[1].Kind != smtpd.KindLMTP || all[1].Connections != 0 || strings.HasSuffix(all[1].Address, ":0") {
		t.Errorf("%+v", all)
	}
}

func TestCloseWithoutRun(t *testing.T) {
	s, err := smtpd.New(smtpd.Options{
		Begin:      func(context.Context) smtpd.Draft { return nil },
		Connectors: []smtpd.Connector{{Name: "a", Address: "127.0.0.1:0"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	addr := s.Listeners()[0].Address
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if conn, err := net.Dial("tcp", addr); err == nil {
		conn.Close()
		t.Error("the socket is still open")
	}
}
