package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"chainmail/lb"
	"chainmail/node/api"
)

// lbNginx are the flags of lb.Nginx.
type lbNginx struct {
	program, version, module  string
	user, accessLog, errorLog string
}

func (n *lbNginx) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&n.program, "nginx", "nginx", "`PROGRAM` that will read the file: it is asked for its version and modules")
	flags.StringVar(&n.version, "nginx-version", "", "`VERSION` of an nginx on another machine; the program here is not asked then")
	flags.StringVar(&n.module, "stream-module", "", "`FILE` of nginx's stream module, or none when it is built in (default as the program says)")
	flags.StringVar(&n.accessLog, "access-log", "", "`FILE` for a line a session and a request, or off (default "+lb.DebianNginx().AccessLog+")")
	flags.StringVar(&n.errorLog, "error-log", "", "`FILE` for what goes wrong, or stderr (default "+lb.DebianNginx().ErrorLog+")")
	flags.StringVar(&n.user, "user", "", "`USER` of nginx's workers (default "+lb.DebianNginx().User+")")
}

// nginx is the nginx that is meant: one that is described, the one that is here,
// or Debian's.
func (n *lbNginx) nginx(ctx context.Context, notes io.Writer) (is lb.Nginx, err error) {
	switch {
	case n.version != "":
		is = lb.DebianNginx()
		if is.Version, err = lb.ParseVersion(n.version); err != nil {
			return is, usageError{fmt.Errorf("--nginx-version: %w", err)}
		}
	default:
		if _, missing := lb.FindProgram(n.program); missing != nil && n.program == "nginx" {
			is = lb.DebianNginx()
			fmt.Fprintf(notes, "chainmail: no nginx is on this machine: the file is for that of Debian 12 (%s); see --nginx-version and --stream-module\n", is.Version)
		} else if is, err = detectNginx(ctx, n.program); err != nil {
			return is, err
		}
	}
	switch n.module {
	case "":
	case "none":
		is.StreamModule = ""
	default:
		is.StreamModule = n.module
	}
	for _, s := range []struct{ from, to *string }{{&n.accessLog, &is.AccessLog}, {&n.errorLog, &is.ErrorLog}, {&n.user, &is.User}} {
		if *s.from != "" {
			*s.to = *s.from
		}
	}
	return is, nil
}

// detectNginx tells those who have no nginx of that name of the flag.
func detectNginx(ctx context.Context, program string) (lb.Nginx, error) {
	is, err := lb.DetectNginx(ctx, program)
	if err != nil {
		if _, missing := lb.FindProgram(program); missing != nil {
			err = fmt.Errorf("%w, or name another program with --nginx PROGRAM", err)
		}
	}
	return is, err
}

// lbHAProxy are the flags of lb.HAProxy.
type lbHAProxy struct{ user, log, socket string }

func (h *lbHAProxy) addFlags(flags *pflag.FlagSet) {
	standard := lb.DebianHAProxy()
	flags.StringVar(&h.user, "haproxy-user", standard.User, "`USER` and group that HAProxy becomes, or none where it is not started as root")
	flags.StringVar(&h.log, "haproxy-log", standard.Log, "syslog's socket as a `FILE`, stdout or stderr")
	flags.StringVar(&h.socket, "haproxy-socket", standard.Stats, "`FILE` for the socket of HAProxy's own commands, or none; its folder must exist")
}

// haproxy is the HAProxy that is meant.
func (h *lbHAProxy) haproxy() (is lb.HAProxy, err error) {
	is = lb.HAProxy{User: lbCommand(h.user, ""), Group: lbCommand(h.user, ""), Log: h.log, Stats: lbCommand(h.socket, "")}
	if err := is.Validate(); err != nil {
		return is, usageError{err}
	}
	return is, nil
}

// lbOnce is a command that renders once.
type lbOnce struct {
	source lbSource
	layout lbLayout
	out    string
}

func (o *lbOnce) addFlags(flags *pflag.FlagSet) {
	flags.SortFlags = false
	addLBOutFlag(flags, &o.out)
	o.source.addFlags(flags)
	o.layout.addFlags(flags)
	addLBConfigFlag(flags)
}

func addLBOutFlag(flags *pflag.FlagSet, out *string) {
	flags.StringVarP(out, "output", "o", "", "write to `FILE` and not to standard output")
}

// make asks, renders, and writes; also the CA's certificate, if the layout makes
// the file name it.
func (o *lbOnce) make(cmd *cobra.Command, needsCA func(lb.Layout) bool, render func(lb.Cluster, lb.Layout) ([]byte, error)) error {
	if o.out != "" {
		var err error
		if o.out, err = filepath.Abs(o.out); err != nil {
			return err
		}
	}
	l, err := o.layout.layout(o.out)
	if err != nil {
		return err
	}
	if err := mayWrite(o.out); err != nil {
		return err
	}
	needed := needsCA(l)
	cluster, ca, err := o.source.ask(cmd.Context(), needed)
	if err != nil {
		return err
	}
	notes := cmd.ErrOrStderr()
	c, problems, err := lb.Read(cluster, l)
	for _, p := range problems {
		fmt.Fprintf(notes, "chainmail: %s\n", sanitize(p))
	}
	if err != nil {
		return err
	}
	text, err := render(c, l)
	if err != nil {
		return err
	}
	warnStranger(notes, cluster, c, l)
	if needed && o.out != "" {
		if err := writeResult(l.CA, ca, "--ca"); err != nil {
			return err
		}
	} else if needed && !exists(l.CA) {
		fmt.Fprintf(notes, "chainmail: the file names %s, which does not exist here; make it with:\n  chainmail cluster ca > %s\n", l.CA, l.CA)
	}
	return writeOutput(cmd, o.out, text)
}

func writeOutput(cmd *cobra.Command, file string, text []byte) error {
	if file == "" {
		_, err := cmd.OutOrStdout().Write(text)
		return err
	}
	return writeResult(file, text, "-o")
}

// writeResult writes a file that flag names.
func writeResult(file string, text []byte, flag string) error {
	if err := os.WriteFile(file, text, 0o644); err != nil {
		return unwritable(file, err, flag)
	}
	return nil
}

func unwritable(file string, err error, flag string) error {
	do := "let this user write there"
	if errors.Is(err, fs.ErrNotExist) {
		do = "make the directory"
	}
	return fmt.Errorf("cannot write %s: %s: %s, or name another with %s", file, pathCause(err), do, flag)
}

// mayWrite tells before the cluster is asked that there is no directory for the
// output.
func mayWrite(file string) error {
	if file == "" {
		return nil
	}
	if _, err := os.Stat(filepath.Dir(file)); err != nil {
		return unwritable(file, err, "-o")
	}
	return nil
}

// warnStranger tells when nodes would refuse the balancer. Only the machine that
// balances knows its address.
func warnStranger(w io.Writer, cluster api.Cluster, c lb.Cluster, l lb.Layout) {
	strangers, err := lb.Strangers(c, cluster.Policies.Balancers, l, localAddress)
	if err != nil || len(strangers) == 0 {
		return
	}
	fmt.Fprintf(w, "chainmail: the nodes do not know a balancer on this machine and would refuse its connections; if it will run here:\n  %s\n",
		lb.Introduce(cluster.Policies.Balancers, strangers))
}

func newLBNginxCommand() *cobra.Command {
	var (
		once    lbOnce
		nginx   lbNginx
		include string
	)
	cmd := &cobra.Command{
		Use:   "nginx",
		Short: "Print a configuration of nginx for the cluster as it is now",
		Long: `Prints a whole nginx.conf, or with --include a piece of one:

  main     a stream block, for the main level: Debian's stock nginx.conf takes it from
           /etc/nginx/modules-enabled/90-chainmail.conf
  stream   what is in that block, for an nginx.conf that has a stream block
  http     for the http block: /etc/nginx/conf.d/chainmail.conf

It needs nginx's stream module (Debian: libnginx-mod-stream). The configuration
holds what is so now; 'lb watch' and 'lb run' keep it so.`,
		Example: `  chainmail lb nginx -o /etc/nginx/nginx.conf && nginx -t && systemctl reload nginx
  chainmail lb nginx --include http --peer 192.0.2.1:8025 --token-file /etc/chainmail/lb.token`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := completeLB(cmd); err != nil {
				return err
			}
			part := lb.Complete
			if include != "" {
				part = lb.Part(include)
			}
			if err := part.Validate(); err != nil {
				return usageError{err}
			}
			is, err := nginx.nginx(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return once.make(cmd, part.Verifies, func(c lb.Cluster, l lb.Layout) ([]byte, error) {
				return lb.RenderNginx(c, l, is, part)
			})
		},
	}
	once.addFlags(cmd.Flags())
	cmd.Flags().StringVar(&include, "include", "", "print only the `PART` for main, stream or http")
	nginx.addFlags(cmd.Flags())
	return cmd
}

func newLBHAProxyCommand() *cobra.Command {
	var (
		once    lbOnce
		haproxy lbHAProxy
	)
	cmd := &cobra.Command{
		Use:   "haproxy",
		Short: "Print a configuration of HAProxy for the cluster",
		Long: `Prints a haproxy.cfg for HAProxy 2.6 or later. HAProxy asks the nodes itself, every
second, whether they take mail, so the file changes only when a member comes, leaves
or moves.

With TLS for clients, --http-cert is a file with certificate and key together.`,
		Example: "  chainmail lb haproxy -o /etc/haproxy/haproxy.cfg && haproxy -c -f /etc/haproxy/haproxy.cfg && systemctl reload haproxy",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := completeLB(cmd); err != nil {
				return err
			}
			is, err := haproxy.haproxy()
			if err != nil {
				return err
			}
			return once.make(cmd, func(lb.Layout) bool { return true }, func(c lb.Cluster, l lb.Layout) ([]byte, error) {
				return lb.RenderHAProxy(c, l, is)
			})
		},
	}
	once.addFlags(cmd.Flags())
	haproxy.addFlags(cmd.Flags())
	return cmd
}

func newLBDNSCommand() *cobra.Command {
	var (
		source lbSource
		out    string
		domain string
		ttl    time.Duration
		also   []string
	)
	cmd := &cobra.Command{
		Use:   "dns --domain DOMAIN",
		Short: "Print MX, SRV and address records, to balance by DNS",
		Long: `Prints records for a zone: clients that follow MX records then choose among the
nodes themselves, and try the next when one is down. It needs no balancer, but only
mail servers that look up MX records use it, clients of a fixed host name do not;
and the nodes take mail on port 25 then.`,
		Example: "  chainmail lb dns --domain archive.example.com\n  chainmail lb dns --domain archive.example.com --also a=2001:db8::1 --ttl 60s",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := completeLB(cmd); err != nil {
				return err
			}
			d := lb.DNS{Domain: domain, TTL: ttl, Also: map[string][]netip.Addr{}}
			for _, text := range also {
				name, address, _ := strings.Cut(text, "=")
				ip, err := netip.ParseAddr(address)
				if err != nil || ip.Zone() != "" {
					return usageError{fmt.Errorf("--also is %q: write NODE=ADDRESS, such as a=2001:db8::1", text)}
				}
				d.Also[name] = append(d.Also[name], ip)
			}
			if err := d.Validate(); err != nil {
				return usageError{err}
			}
			cluster, _, err := source.ask(cmd.Context(), false)
			if err != nil {
				return err
			}
			c, problems, err := lb.Read(cluster, lb.Layout{})
			for _, p := range problems {
				fmt.Fprintf(cmd.ErrOrStderr(), "chainmail: %s\n", sanitize(p))
			}
			if err != nil {
				return err
			}
			text, err := lb.RenderDNS(c, d)
			if _, unknown := errors.AsType[*lb.UnknownNodeError](err); unknown {
				return usageError{err}
			}
			if err != nil {
				return err
			}
			return writeOutput(cmd, out, text)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&domain, "domain", "", "`DOMAIN` that mail is sent to")
	flags.DurationVar(&ttl, "ttl", 5*time.Minute, "how long resolvers may keep the records")
	flags.StringSliceVar(&also, "also", nil, "a further address of a node, `NODE=IP`, such as its IPv6 address")
	addLBOutFlag(flags, &out)
	source.addFlags(flags)
	addLBConfigFlag(flags)
	return cmd
}

func newLBKeepalivedCommand() *cobra.Command {
	var (
		k           lb.Keepalived
		own, out    string
		others      []string
		shared      []string
		smtp, check string
	)
	cmd := &cobra.Command{
		Use:   "keepalived --interface NAME --own IP --other IP --shared IP/BITS",
		Short: "Print a configuration of keepalived: two balancers, one address",
		Long: `Prints a keepalived.conf for one of two or more balancers that share an address by
VRRP: one has it, and when that machine or its balancer dies, the next one takes it
within about three seconds. Run it for each of them, with --own and --other the
other way around and another --priority.

Let the balancers listen on all interfaces (--smtp :25), so that the address may
come and go, and name the own addresses of all of them in 'chainmail cluster set
balancers=…'. Nothing is asked of the cluster.`,
		Example: `  chainmail lb keepalived --interface eth0 --own 192.0.2.10 --other 192.0.2.11 --shared 192.0.2.100/24 --priority 150
  chainmail lb keepalived --interface eth0 --own 192.0.2.11 --other 192.0.2.10 --shared 192.0.2.100/24 --priority 100`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if err := completeLB(cmd); err != nil {
				return err
			}
			if own != "" { // else RenderKeepalived says that it is missing
				if k.Own, err = parseIP("--own", own); err != nil {
					return err
				}
			}
			for _, text := range others {
				ip, err := parseIP("--other", text)
				if err != nil {
					return err
				}
				k.Others = append(k.Others, ip)
			}
			for _, text := range shared {
				p, err := netip.ParsePrefix(text)
				if err != nil {
					return usageError{fmt.Errorf("--shared is %q: write the address with the bits of its network, such as 192.0.2.100/24", text)}
				}
				k.Shared = append(k.Shared, p)
			}
			if k.Check = check; check == "" {
				k.Check = "/usr/bin/chainmail lb check --smtp " + smtp
			}
			text, err := lb.RenderKeepalived(k)
			if err != nil {
				return usageError{err}
			}
			return writeOutput(cmd, out, text)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&k.Interface, "interface", "", "network `INTERFACE` of the shared address")
	flags.StringVar(&own, "own", "", "`IP` address of this balancer there")
	flags.StringSliceVar(&others, "other", nil, "`IP` address of the other balancer; several in a list")
	flags.StringSliceVar(&shared, "shared", nil, "`IP/BITS` that clients use, on one balancer at a time; several in a list")
	flags.IntVar(&k.Priority, "priority", 100, "1 to 254, another one on each balancer: the highest has the address first")
	flags.IntVar(&k.Router, "router", 51, "VRRP's `NUMBER` of the group, 1 to 255: the same on all, and no other group's in the network")
	flags.StringVar(&smtp, "check-smtp", "127.0.0.1:25", "`ADDRESS` at which the check expects this balancer")
	flags.StringVar(&check, "check-program", "", "`PROGRAM` that fails when this balancer does not balance (default chainmail lb check)")
	flags.StringVar(&k.CheckUser, "check-user", "nobody", "`USER` who runs it")
	addLBOutFlag(flags, &out)
	addLBConfigFlag(flags)
	return cmd
}

func parseIP(flag, text string) (netip.Addr, error) {
	ip, err := netip.ParseAddr(text)
	if err != nil || ip.Zone() != "" {
		return ip, usageError{fmt.Errorf("%s is %q: write an IP address", flag, text)}
	}
	return ip, nil
}
