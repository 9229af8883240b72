package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/user"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"chainmail/lb"
	"chainmail/node"
	"chainmail/node/api"
	"chainmail/node/client"
)

// lbFixed are the flags of lb commands whose values are few.
var lbFixed = map[string][]cobra.Completion{
	"include":    {string(lb.MainPart), string(lb.StreamPart), string(lb.HTTPPart)},
	"http-mode":  {string(lb.Proxy), string(lb.Passthrough)},
	"log-level":  {"debug", "info", "warn", "error"},
	"log-format": {string(node.LogText), string(node.LogJSON)},
}

// completeFixed lets shells complete the values of flags that have few.
func completeFixed(commands []*cobra.Command) {
	for _, c := range commands {
		for flag, values := range lbFixed {
			if c.Flags().Lookup(flag) == nil {
				continue
			}
			if err := c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
				panic(err) // the flag is there
			}
		}
	}
}

func newLBCommand() *cobra.Command {
	cmd := group("lb", "Keep a balancer in front of the cluster",
		newLBNginxCommand(), newLBHAProxyCommand(), newLBKeepalivedCommand(), newLBDNSCommand(),
		newLBWatchCommand(), newLBRunCommand(), newLBCheckCommand())
	completeFixed(cmd.Commands())
	cmd.Long = `Makes the configuration of a balancer, and keeps it as the cluster is: one address
for mail and one for HTTP, whatever node dies, drains or joins.

  lb run         starts nginx by itself and follows the cluster: the easiest way
  lb watch       follows the cluster for an nginx or HAProxy that runs already
  lb nginx       prints a configuration once; so do haproxy, keepalived and dns

The cluster is asked at --peer, the HTTP port of any member, with the API token in
--token-file; without --peer, the node on this machine is asked.

Every flag can stand in ` + systemLBConfig + ` (--config) under its own name, for
example "source-address: 192.0.2.10", or in the environment as
CHAINMAIL_LB_SOURCE_ADDRESS. Flags count before the environment, and that before
the file. ` + lbSample + ` has all of them.`
	return cmd
}

// lbTokenVariable holds the API token when no file does.
const lbTokenVariable = envPrefix + "_TOKEN"

// lbSource is where the cluster is asked.
type lbSource struct {
	to        target
	peers     []string
	tokenFile string
}

func (s *lbSource) addFlags(flags *pflag.FlagSet) {
	flags.StringSliceVar(&s.peers, "peer", nil, "`HOST:PORT` of a member's HTTP port; several in a list, or by several flags. The others are learned (default the node on this machine)")
	flags.StringVar(&s.tokenFile, "token-file", "", "`FILE` with an API token, such as 'chainmail token api --name lb --scope cluster' makes (default $"+lbTokenVariable+")")
	s.to.addFlags(flags)
}

// open finds out whom to ask, and how. The peers that it returns are those to
// begin with.
func (s *lbSource) open() (dial lb.Dialer, peers []string, err error) {
	if len(s.peers) == 0 {
		local, err := s.to.client()
		if err != nil {
			return nil, nil, err
		}
		return func(address string) (lb.Asker, error) {
			if address == here {
				return local, nil
			}
			return &neighbour{local: local, address: address}, nil
		}, []string{here}, nil
	}
	token, err := s.token()
	if err != nil {
		return nil, nil, err
	}
	dial = func(address string) (lb.Asker, error) { return client.NewRemote(address, token) }
	for _, peer := range s.peers {
		a, err := dial(peer)
		if err != nil {
			return nil, nil, usageError{fmt.Errorf("--peer: %w or [2001:db8::1]:8025", err)}
		}
		a.Close()
	}
	return dial, s.peers, nil
}

func (s *lbSource) token() (string, error) {
	text := os.Getenv(lbTokenVariable)
	from := "$" + lbTokenVariable
	if s.tokenFile != "" {
		b, err := os.ReadFile(s.tokenFile)
		switch {
		case errors.Is(err, fs.ErrPermission): // a matter of the machine: the next start may be better
			return "", fmt.Errorf("--token-file: %w: let the user %s read it; for the packaged service: chown root:chainmail-lb %s, chmod 640 %s", err, thisUser(), s.tokenFile, s.tokenFile)
		case err != nil:
			return "", usageError{fmt.Errorf("--token-file: %w", err)}
		}
		text, from = string(b), "--token-file "+s.tokenFile
	}
	if text = strings.TrimSpace(text); text == "" {
		return "", usageError{fmt.Errorf("%s holds no API token, which --peer needs: write the output of 'chainmail token api --name lb --scope cluster' on any node into a file, and name it with --token-file", from)}
	}
	if _, ok := api.ParseSecret(api.APITokenPrefix, text); !ok {
		return "", usageError{fmt.Errorf("%s holds no API token, or not the whole of one: it begins with '%s', and 'chainmail token api' on any node makes one", from, api.APITokenPrefix)}
	}
	return text, nil
}

// thisUser is the name of who runs this, or the number.
func thisUser() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return strconv.Itoa(os.Geteuid())
}

// ask asks once.
func (s *lbSource) ask(ctx context.Context, withCA bool) (cluster api.Cluster, ca []byte, err error) {
	dial, peers, err := s.open()
	if err != nil {
		return cluster, nil, err
	}
	var problems []error
	for _, peer := range peers {
		a, err := dial(peer)
		if err == nil {
			if cluster, err = a.Cluster(ctx); err == nil && withCA {
				ca, err = a.CA(ctx)
			}
			a.Close()
		}
		if err == nil {
			return cluster, ca, nil
		}
		problems = append(problems, err)
	}
	return cluster, nil, errors.Join(problems...)
}

// lbLayout are the flags of lb.Layout.
type lbLayout struct {
	smtp, smtps, http []string
	smtpsPort         uint16
	mode              string
	cert, key, ca     string
	source            string
	front             bool
}

func (l *lbLayout) addFlags(flags *pflag.FlagSet) {
	flags.StringSliceVar(&l.smtp, "smtp", []string{":25"}, "`ADDRESS` for mail, several in a list; :25 is port 25 of every interface, off is none")
	flags.StringSliceVar(&l.smtps, "smtps", nil, "`ADDRESS` for mail that begins with TLS, which the nodes end (default none)")
	flags.Uint16Var(&l.smtpsPort, "smtps-port", 465, "`PORT` of the nodes for --smtps")
	flags.StringSliceVar(&l.http, "http", []string{":8025"}, "`ADDRESS` for HTTP; off is none")
	flags.StringVar(&l.mode, "http-mode", string(lb.Proxy), "proxy (the balancer speaks HTTP, nodes are verified), or passthrough (bytes as they are)")
	flags.StringVar(&l.cert, "http-cert", "", "PEM `FILE` with the certificate chain for clients of --http (default plain HTTP)")
	flags.StringVar(&l.key, "http-key", "", "PEM `FILE` with its key (default the same file)")
	flags.StringVar(&l.ca, "ca", "", "`FILE` for the certificate of the cluster's CA (default beside the output)")
	flags.StringVar(&l.source, "source-address", "", "`IP` address of this machine from which nodes are reached (default the system's choice)")
	flags.BoolVar(&l.front, "http-on-front", false, "reach the nodes' HTTP port at the host of their SMTP address: for a balancer outside the nodes' own network")
}

// layout reads the flags. out is the file that is made, empty for standard
// output.
func (l *lbLayout) layout(out string) (layout lb.Layout, err error) {
	layout = lb.Layout{HTTPMode: lb.HTTPMode(l.mode), HTTPCert: l.cert, HTTPKey: l.key, CA: l.ca, HTTPOnFront: l.front}
	for _, s := range []struct {
		flag  string
		texts []string
		to    *[]netip.AddrPort
	}{{"--smtp", l.smtp, &layout.SMTP}, {"--smtps", l.smtps, &layout.SMTPS}, {"--http", l.http, &layout.HTTP}} {
		for _, text := range s.texts {
			addresses, err := listenAddresses(text)
			if err != nil {
				return layout, usageError{fmt.Errorf("%s: %w", s.flag, err)}
			}
			*s.to = append(*s.to, addresses...)
		}
	}
	if len(layout.SMTPS) > 0 {
		layout.SMTPSPort = l.smtpsPort
	}
	if l.source != "" {
		if layout.Source, err = netip.ParseAddr(l.source); err != nil || layout.Source.Zone() != "" {
			return layout, usageError{fmt.Errorf("--source-address is %q: write an IP address of this machine", l.source)}
		}
	}
	if layout.CA == "" {
		layout.CA = lbDefaultCA
		if out != "" {
			layout.CA = out + ".ca.pem"
		}
	}
	if err := layout.Validate(); err != nil {
		return layout, usageError{err}
	}
	return layout, nil
}

// lbDefaultCA is what a configuration on standard output names.
const lbDefaultCA = "/etc/chainmail/cluster-ca.pem"

// listenAddresses reads an address to listen on; one without a host means all
// interfaces, of both families where this machine has both.
func listenAddresses(text string) ([]netip.AddrPort, error) {
	if text == "off" || text == "" {
		return nil, nil
	}
	host, portText, err := net.SplitHostPort(text)
	port, errPort := strconv.ParseUint(portText, 10, 16)
	if err != nil || errPort != nil || port == 0 {
		return nil, fmt.Errorf("%q is no address to listen on: write :25, 192.0.2.10:25, [2001:db8::10]:25, or off", text)
	}
	if host != "" {
		ip, err := netip.ParseAddr(host)
		if err != nil {
			return nil, fmt.Errorf("%q: write the IP address and not a name, or no host for all interfaces", text)
		}
		return []netip.AddrPort{netip.AddrPortFrom(ip, uint16(port))}, nil
	}
	all := []netip.AddrPort{netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(port))}
	if hasIPv6() {
		all = append(all, netip.AddrPortFrom(netip.IPv6Unspecified(), uint16(port)))
	}
	return all, nil
}

// hasIPv6 reports whether a socket of that family can be bound.
func hasIPv6() bool {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err == nil {
		l.Close()
	}
	return err == nil
}

// localAddress is where this machine's packets to a node come from. Nothing is
// sent.
func localAddress(to lb.Address) (netip.Addr, error) {
	conn, err := net.Dial("udp", to.String())
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	local, err := netip.ParseAddrPort(conn.LocalAddr().String())
	return local.Addr().WithZone(""), err
}

// connectFrom opens connections to nodes as a balancer does that has this source.
func connectFrom(source netip.Addr) func(context.Context, lb.Address) (net.Conn, error) {
	var d net.Dialer
	if source.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	}
	return func(ctx context.Context, to lb.Address) (net.Conn, error) {
		return d.DialContext(ctx, "tcp", to.String())
	}
}
