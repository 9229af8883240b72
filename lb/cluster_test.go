package lb_test

import (
	"errors"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"chainmail/lb"
	"chainmail/node/api"
)

func TestAddresses(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.1:25": "192.0.2.1:25", "[2001:db8::1]:25": "[2001:db8::1]:25", "[::ffff:192.0.2.1]:25": "192.0.2.1:25",
		"mail-a.example.com:2525": "mail-a.example.com:2525", "Node_A:25": "node_a:25", "a:65535": "a:65535",
		"":          "",
		"192.0.2.1": "", "192.0.2.1:0": "", "192.0.2.1:65536": "", "192.0.2.1:smtp": "", ":25": "", "0.0.0.0:25": "", "[::]:25": "",
		"[fe80::1%eth0]:25": "", "a b:25": "", "a;b:25": "", "a\n:25": "", "a{:25": "", "$host:25": "", "a..b:25": "", "-a:25": "", ".a:25": "",
		"unix:/run/x:25": "", "\"a\":25": "", "a#:25": "", strings.Repeat("a.", 130) + "a:25": "",
	} {
		a, err := lb.ParseAddress(text)
		if (err == nil) != (want != "") || a.String() != want {
			t.Errorf("%q: %q %v, want %q", text, a, err, want)
		}
	}
}

// TestHostileMembersAreLeftOut: a member whose name or address is something else
// is no reason to balance to nobody, and none to believe it.
func TestHostileMembersAreLeftOut(t *testing.T) {
	const evil = "x; } server { listen 1;"
	for what, change := range map[string]func(m *api.Member){
		"name":           func(m *api.Member) { m.Name = evil },
		"newline":        func(m *api.Member) { m.Name = "b\n}" },
		"same name":      func(m *api.Member) { m.Name = "a" },
		"SMTP":           func(m *api.Member) { m.Addresses["smtp"] = evil + ":25" },
		"HTTP":           func(m *api.Member) { m.Addresses["http"] = "192.0.2.2:80\";" },
		"no SMTP":        func(m *api.Member) { delete(m.Addresses, "smtp") },
		"no addresses":   func(m *api.Member) { m.Addresses = nil },
		"dots in a name": func(m *api.Member) { m.Name = "../b" },
	} {
		answer := members(3, func(by map[string]*api.Member) { change(by["b"]) })
		c, problems, err := lb.Read(answer, standard())
		if err != nil || len(c.Nodes) != 2 || len(problems) != 1 || strings.Contains(problems[0], "\n") {
			t.Errorf("%s: %v %v %v", what, c, problems, err)
		}
	}
	for what, answer := range map[string]api.Cluster{
		"cluster": {ID: "x\n" + evil}, "no cluster": {}, "nobody": {ID: "0123"},
	} {
		if _, _, err := lb.Read(answer, standard()); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	if _, _, err := lb.Read(api.Cluster{ID: "0123"}, standard()); !errors.Is(err, lb.ErrNobody) {
		t.Error(err)
	}
}

// FuzzNothingIsInjected: whatever a cluster answers, the lines of the files are
// those of the templates, with names and addresses in them.
func FuzzNothingIsInjected(f *testing.F) {
	f.Add("a", "192.0.2.1:25", "192.0.2.1:8025", "active", "0123")
	f.Add("a;", "x{:25", "[::1]:1", "draining", "0123\n")
	f.Add("a_b.c", "under_score.example:25", "H:1", "full", "ff")
	line := regexp.MustCompile(`^(server \S+ (max_fails=[01]( fail_timeout=5s)?|down)( backup)?; # [a-z0-9._-]+(: [A-Za-z ]+)?|upstream chainmail_http_[a-z0-9._-]+ \{|"~\^[a-z0-9._\\-]+\$" chainmail_http_[a-z0-9._-]+;|"~\(\^\|\\s\)[][a-z0-9._:\\-]+\$" [a-z0-9._-]+;|zone chainmail_http_[a-z0-9._-]+ 128k;|# Made by chainmail lb for the cluster [0-9a-f]+\.)$`)
	l := standard()
	known := map[string]bool{}
	plain, _ := lb.RenderNginx(mustRead(members(2)), l, lb.DebianNginx(), lb.Complete)
	for text := range strings.Lines(string(plain)) {
		known[strings.TrimSpace(text)] = true
	}
	single, _ := lb.RenderNginx(mustRead(members(1)), l, lb.DebianNginx(), lb.Complete)
	for text := range strings.Lines(string(single)) {
		known[strings.TrimSpace(text)] = true
	}
	f.Fuzz(func(t *testing.T, name, smtp, http, state, id string) {
		answer := members(2)
		answer.ID = id
		answer.Members[0] = api.Member{Name: name, Role: "data", State: state, Addresses: map[string]string{"smtp": smtp, "http": http}, Self: &api.SelfReport{State: state}}
		c, _, err := lb.Read(answer, l)
		if err != nil {
			return
		}
		text, err := lb.RenderNginx(c, l, lb.DebianNginx(), lb.Complete)
		if err != nil {
			t.Fatal(err)
		}
		for got := range strings.Lines(string(text)) {
			if got = strings.TrimSpace(got); !known[got] && !line.MatchString(got) {
				t.Errorf("a line that no template has: %q", got)
			}
		}
		if _, err := lb.RenderHAProxy(c, l, lb.DebianHAProxy()); err != nil {
			t.Error(err)
		}
		if _, err := lb.RenderDNS(c, lb.DNS{Domain: "example.com", TTL: time.Minute}); err != nil {
			t.Error(err)
		}
	})
}

func mustRead(answer api.Cluster) lb.Cluster {
	c, _, err := lb.Read(answer, standard())
	if err != nil {
		panic(err)
	}
	return c
}

// TestStrangers: the policy must name the address from which nodes are reached.
func TestStrangers(t *testing.T) {
	l := standard()
	c := read(t, members(3), l)
	local := func(lb.Address) (netip.Addr, error) { return netip.MustParseAddr("192.0.2.10"), nil }
	for _, s := range []struct {
		policy []string
		source string
		want   string
	}{
		{nil, "", "chainmail cluster set balancers=192.0.2.10"},
		{[]string{"192.0.2.11"}, "", "chainmail cluster set balancers=192.0.2.11,192.0.2.10"},
		{[]string{"192.0.2.10"}, "", ""},
		{[]string{"192.0.2.0/28"}, "", ""},
		{[]string{"192.0.2.10"}, "192.0.2.99", "chainmail cluster set balancers=192.0.2.10,192.0.2.99"},
	} {
		l.Source = netip.Addr{}
		if s.source != "" {
			l.Source = netip.MustParseAddr(s.source)
		}
		strangers, err := lb.Strangers(c, s.policy, l, local)
		got := ""
		if len(strangers) > 0 {
			got = lb.Introduce(s.policy, strangers)
		}
		if err != nil || got != s.want {
			t.Errorf("%v from %q: %q %v, want %q", s.policy, s.source, got, err, s.want)
		}
	}
}
