package lb_test

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chainmail/lb"
	"chainmail/node/api"
)

var update = flag.Bool("update", false, "rewrite the golden files of this package")

// golden compares text with a file of testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("differs from %s (run the test with -update to accept it)\n got:\n%s\nwant:\n%s", file, got, want)
	}
}

// members makes a cluster's answer of n active nodes, a and so on, and a witness.
func members(n int, change ...func(m map[string]*api.Member)) api.Cluster {
	c := api.Cluster{ID: "5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e", Node: "a", Epoch: 7, Quorum: true}
	by := map[string]*api.Member{}
	for i := range n {
		name := string(rune('a' + i))
		by[name] = &api.Member{
			Name: name, Role: "data", State: api.StateActive, Self: &api.SelfReport{Node: name, State: api.StateActive},
			Addresses: map[string]string{"smtp": fmt.Sprintf("192.0.2.%d:25", i+1), "http": fmt.Sprintf("192.0.2.%d:8025", i+1)},
		}
	}
	for _, f := range change {
		f(by)
	}
	for i := n - 1; i >= 0; i-- { // the order of a ring is any
		c.Members = append(c.Members, *by[string(rune('a'+i))])
	}
	c.Members = append(c.Members, api.Member{Name: "w", Role: "witness", State: api.StateActive, Addresses: map[string]string{"http": "192.0.2.200:8025"}})
	return c
}

func addrs(texts ...string) (list []netip.AddrPort) {
	for _, s := range texts {
		list = append(list, netip.MustParseAddrPort(s))
	}
	return list
}

// standard is the layout that operators have who choose nothing.
func standard(change ...func(*lb.Layout)) lb.Layout {
	l := lb.Layout{
		SMTP: addrs("0.0.0.0:25", "[::]:25"), HTTP: addrs("0.0.0.0:8025", "[::]:8025"),
		HTTPMode: lb.Proxy, CA: "/etc/chainmail/lb/ca.pem",
	}
	for _, f := range change {
		f(&l)
	}
	return l
}

func twoCards(by map[string]*api.Member) {
	for i, name := range []string{"a", "b", "c"} {
		by[name].Addresses = map[string]string{"smtp": fmt.Sprintf("192.0.2.%d:25", i+1), "http": fmt.Sprintf("10.0.0.%d:8025", i+1)}
	}
}

func ipv6(by map[string]*api.Member) {
	for i, name := range []string{"a", "b", "c"} {
		by[name].Addresses = map[string]string{"smtp": fmt.Sprintf("[2001:db8::%d]:25", i+1), "http": fmt.Sprintf("[2001:db8::%d]:8025", i+1)}
	}
}

func self(name, state string) func(map[string]*api.Member) {
	return func(by map[string]*api.Member) { by[name].Self.State = state }
}

func state(name, state string) func(map[string]*api.Member) {
	return func(by map[string]*api.Member) {
		if by[name].State = state; state == api.StateUnreachable {
			by[name].Self = nil
		}
	}
}

// situations are the clusters and layouts that every balancer is rendered for.
var situations = []struct {
	name   string
	answer api.Cluster
	layout lb.Layout
}{
	{"one", members(1), standard()},
	{"two", members(2), standard()},
	{"three", members(3), standard()},
	{"seven", members(7), standard()},
	{"joining", members(3, state("c", api.StateJoining), self("c", api.StateJoining)), standard()},
	{"drained", members(3, state("b", api.StateDraining), self("b", api.StateDraining)), standard()},
	{"dead", members(3, state("b", api.StateUnreachable)), standard()},
	{"full", members(3, self("b", api.StateFull)), standard()},
	{"all-dead", members(2, state("a", api.StateUnreachable), state("b", api.StateUnreachable)), standard()},
	{"two-cards", members(3, twoCards), standard(func(l *lb.Layout) {
		l.SMTP, l.HTTP = addrs("192.0.2.100:25"), addrs("192.0.2.100:8025")
	})},
	{"front-only", members(3, twoCards), standard(func(l *lb.Layout) { l.HTTPOnFront = true })},
	{"ipv6", members(3, ipv6), standard(func(l *lb.Layout) {
		l.SMTP, l.HTTP, l.Source = addrs("[2001:db8::100]:25"), addrs("[2001:db8::100]:8025"), netip.MustParseAddr("2001:db8::100")
	})},
	{"tls", members(3), standard(func(l *lb.Layout) {
		l.SMTPS, l.SMTPSPort = addrs("0.0.0.0:465", "[::]:465"), 465
		l.HTTP, l.HTTPCert = addrs("0.0.0.0:443", "[::]:443"), "/etc/chainmail/lb/console.pem"
	})},
	{"passthrough", members(3), standard(func(l *lb.Layout) {
		l.HTTPMode, l.HTTP = lb.Passthrough, addrs("0.0.0.0:443")
	})},
	{"mail-only", members(3), standard(func(l *lb.Layout) { l.HTTP = nil })},
	{"loopback", members(2), standard(func(l *lb.Layout) {
		l.SMTP, l.HTTP, l.Source = addrs("127.0.0.1:2600"), addrs("127.0.0.1:2604"), netip.MustParseAddr("127.0.0.2")
	})},
}

func read(t *testing.T, answer api.Cluster, l lb.Layout) lb.Cluster {
	t.Helper()
	c, problems, err := lb.Read(answer, l)
	if err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	return c
}

func TestNginxIsRenderedAndAccepted(t *testing.T) {
	for _, s := range situations {
		t.Run(s.name, func(t *testing.T) {
			text, err := lb.RenderNginx(read(t, s.answer, s.layout), s.layout, lb.DebianNginx(), lb.Complete)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "nginx-"+s.name+".conf", text)
			acceptedByNginx(t, string(text))
		})
	}
}

// TestOwnNginxIsRenderedAndAccepted: what lb run gives to its nginx.
func TestOwnNginxIsRenderedAndAccepted(t *testing.T) {
	l, n := standard(), lb.DebianNginx()
	n.PID, n.AccessLog, n.Temp = "/var/log/nginx/nginx.pid", "/var/log/nginx/access.log", "/var/log/nginx/temp"
	n.ErrorLog, n.User, n.Foreground = "stderr", "", true
	text, err := lb.RenderNginx(read(t, members(3), l), l, n, lb.Complete)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "nginx-own.conf", text)
	acceptedByNginx(t, string(text))
}

// TestNginxIncludesAreAccepted puts the includes where Debian's own nginx.conf
// includes files.
func TestNginxIncludesAreAccepted(t *testing.T) {
	l := standard()
	c := read(t, members(3, state("b", api.StateDraining)), l)
	parts := map[lb.Part]string{}
	for _, part := range []lb.Part{lb.MainPart, lb.StreamPart, lb.HTTPPart} {
		text, err := lb.RenderNginx(c, l, lb.DebianNginx(), part)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "nginx-include-"+string(part)+".conf", text)
		parts[part] = string(text)
	}
	const module = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n"
	for name, text := range map[string]string{
		"main and http":   module + parts[lb.MainPart] + "events {}\nhttp {\n" + parts[lb.HTTPPart] + "}\n",
		"stream and http": module + "events {}\nstream {\n" + parts[lb.StreamPart] + "}\nhttp {\n" + parts[lb.HTTPPart] + "}\n",
	} {
		t.Run(name, func(t *testing.T) { acceptedByNginx(t, text) })
	}
}

// TestNginxOfOtherVersions: what is here cannot check these.
func TestNginxOfOtherVersions(t *testing.T) {
	tls := standard(func(l *lb.Layout) { l.HTTPCert, l.HTTPKey = "/etc/ssl/console.pem", "/etc/ssl/console.key" })
	c := read(t, members(3), tls)
	for _, version := range []string{"1.25.1", "1.29.6"} {
		v, err := lb.ParseVersion(version)
		if err != nil {
			t.Fatal(err)
		}
		n := lb.DebianNginx()
		n.Version, n.StreamModule = v, ""
		text, err := lb.RenderNginx(c, tls, n, lb.Complete)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "nginx-"+version+".conf", text)
	}
}

func TestHAProxyIsRenderedAndAccepted(t *testing.T) {
	for _, s := range situations {
		t.Run(s.name, func(t *testing.T) {
			text, err := lb.RenderHAProxy(read(t, s.answer, s.layout), s.layout, lb.DebianHAProxy())
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "haproxy-"+s.name+".cfg", text)
			acceptedByHAProxy(t, string(text))
		})
	}
}

// TestHAProxyIsNotReloadedForWhatItSees: it asks the nodes itself.
func TestHAProxyIsNotReloadedForWhatItSees(t *testing.T) {
	l := standard()
	render := func(answer api.Cluster) string {
		text, err := lb.RenderHAProxy(read(t, answer, l), l, lb.DebianHAProxy())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	well := render(members(3))
	for name, answer := range map[string]api.Cluster{
		"dead": members(3, state("b", api.StateUnreachable)), "full": members(3, self("b", api.StateFull)),
		"starting": members(3, self("b", api.StateStarting)), "joining": members(3, state("b", api.StateJoining)),
	} {
		if render(answer) != well {
			t.Errorf("a node that is %s changes the file", name)
		}
	}
	if render(members(3, state("b", api.StateDraining))) == well {
		t.Error("a node that leaves the cluster does not change the file")
	}
}

func TestKeepalivedIsRenderedAndAccepted(t *testing.T) {
	ip := netip.MustParseAddr
	for name, k := range map[string]lb.Keepalived{
		"first":  {Own: ip("192.0.2.10"), Others: []netip.Addr{ip("192.0.2.11")}, Shared: []netip.Prefix{netip.MustParsePrefix("192.0.2.100/24")}, Priority: 150},
		"second": {Own: ip("192.0.2.11"), Others: []netip.Addr{ip("192.0.2.10")}, Shared: []netip.Prefix{netip.MustParsePrefix("192.0.2.100/24")}, Priority: 100},
		"three":  {Own: ip("192.0.2.10"), Others: []netip.Addr{ip("192.0.2.11"), ip("192.0.2.12")}, Shared: []netip.Prefix{netip.MustParsePrefix("192.0.2.100/24"), netip.MustParsePrefix("2001:db8::100/64")}, Priority: 150},
		"ipv6":   {Own: ip("2001:db8::10"), Others: []netip.Addr{ip("2001:db8::11")}, Shared: []netip.Prefix{netip.MustParsePrefix("2001:db8::100/64")}, Priority: 150},
	} {
		t.Run(name, func(t *testing.T) {
			k.Interface, k.Router, k.CheckUser = "eth0", 51, "nobody"
			k.Check = "/usr/bin/chainmail lb check --smtp 192.0.2.10:25"
			text, err := lb.RenderKeepalived(k)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "keepalived-"+name+".conf", text)
			acceptedByKeepalived(t, string(text))
		})
	}
}

func TestKeepalivedRefusals(t *testing.T) {
	ip := netip.MustParseAddr
	good := lb.Keepalived{
		Interface: "eth0", Own: ip("192.0.2.10"), Others: []netip.Addr{ip("192.0.2.11")},
		Shared: []netip.Prefix{netip.MustParsePrefix("192.0.2.100/24")}, Router: 51, Priority: 150, Check: "/bin/true", CheckUser: "nobody",
	}
	if _, err := lb.RenderKeepalived(good); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(k *lb.Keepalived){
		"--interface":      func(k *lb.Keepalived) { k.Interface = "eth0\n}" },
		"--own is missing": func(k *lb.Keepalived) { k.Own = netip.Addr{} },
		"which is --own":   func(k *lb.Keepalived) { k.Others = []netip.Addr{k.Own} },
		"another family":   func(k *lb.Keepalived) { k.Others = []netip.Addr{ip("2001:db8::1")} },
		"no machine has":   func(k *lb.Keepalived) { k.Shared = []netip.Prefix{netip.PrefixFrom(k.Own, 24)} },
		"no --shared":      func(k *lb.Keepalived) { k.Shared = []netip.Prefix{netip.MustParsePrefix("2001:db8::1/64")} },
		"--router is 256":  func(k *lb.Keepalived) { k.Router = 256 },
		"--priority is 0":  func(k *lb.Keepalived) { k.Priority = 0 },
		"--check is":       func(k *lb.Keepalived) { k.Check = "/bin/true\"\n" },
		"--check-user":     func(k *lb.Keepalived) { k.CheckUser = "a b" },
	} {
		k := good
		change(&k)
		if _, err := lb.RenderKeepalived(k); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestDNSIsRendered(t *testing.T) {
	named := func(by map[string]*api.Member) { by["b"].Addresses["smtp"] = "mail-b.example.net:2525" }
	for name, c := range map[string]struct {
		answer api.Cluster
		also   map[string][]netip.Addr
	}{
		"three":   {answer: members(3, state("b", api.StateUnreachable))},
		"drained": {answer: members(3, state("b", api.StateDraining))},
		"ipv6":    {answer: members(3, ipv6)},
		"mixed":   {answer: members(3, named), also: map[string][]netip.Addr{"a": {netip.MustParseAddr("2001:db8::1")}}},
	} {
		t.Run(name, func(t *testing.T) {
			text, err := lb.RenderDNS(read(t, c.answer, lb.Layout{}), lb.DNS{Domain: "archive.example.com", TTL: time.Minute, Also: c.also})
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "dns-"+name+".zone", text)
			acceptedByBIND(t, string(text))
		})
	}
	for want, d := range map[string]lb.DNS{
		"--domain is missing": {TTL: time.Minute},
		"--domain is":         {Domain: "a b.example", TTL: time.Minute},
		"--ttl":               {Domain: "example.com"},
		"no node":             {Domain: "example.com", TTL: time.Minute, Also: map[string][]netip.Addr{"x": nil}},
	} {
		if _, err := lb.RenderDNS(read(t, members(1), lb.Layout{}), d); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestLayoutRefusals(t *testing.T) {
	for want, change := range map[string]func(l *lb.Layout){
		"nothing to serve":    func(l *lb.Layout) { l.SMTP, l.HTTP = nil, nil },
		"--smtps-port":        func(l *lb.Layout) { l.SMTPS = addrs("0.0.0.0:465") },
		"--http-mode":         func(l *lb.Layout) { l.HTTPMode = "magic" },
		"nodes' own cert":     func(l *lb.Layout) { l.HTTPMode, l.HTTPCert = lb.Passthrough, "/c" },
		"without --http-cert": func(l *lb.Layout) { l.HTTPKey = "/k" },
		"--ca":                func(l *lb.Layout) { l.CA = "" },
		"--smtp and --http":   func(l *lb.Layout) { l.HTTP = l.SMTP },
		"--smtp is":           func(l *lb.Layout) { l.SMTP = addrs("[fe80::1%eth0]:25") },
		"--http-cert is":      func(l *lb.Layout) { l.HTTPCert = "/etc/x\";}" },
		"--http-key is":       func(l *lb.Layout) { l.HTTPCert, l.HTTPKey = "/c", "relative" },
		"--ca is":             func(l *lb.Layout) { l.CA = "/etc/$host" },
	} {
		if err := standard(change).Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

// TestSourceOfTheWrongFamily: a balancer could not reach such a node.
func TestSourceOfTheWrongFamily(t *testing.T) {
	l := standard(func(l *lb.Layout) { l.Source = netip.MustParseAddr("2001:db8::100") })
	if _, problems, err := lb.Read(members(2), l); !errors.Is(err, lb.ErrNobody) || len(problems) != 2 || !strings.Contains(problems[0], "another family") {
		t.Error(problems, err)
	}
}
