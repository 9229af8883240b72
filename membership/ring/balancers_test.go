package ring_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"chainmail/membership/ring"
)

func TestParseBalancers(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"192.0.2.10", "192.0.2.10"},
		{"192.0.2.10/32", "192.0.2.10"},
		{" 192.0.2.11 ,192.0.2.10,192.0.2.11", "192.0.2.10,192.0.2.11"},
		{"2001:DB8:0::1,10.1.2.3/8", "10.0.0.0/8,2001:db8::1"},
		{"::ffff:192.0.2.1", "192.0.2.1"},
		{"2001:db8::1/64", "2001:db8::/64"},
		{"127.0.0.2,::1", "127.0.0.2,::1"},
	} {
		var in []string
		if c.in != "" {
			in = strings.Split(c.in, ",")
		}
		got, err := ring.ParseBalancers(in)
		if err != nil || strings.Join(got, ",") != c.want {
			t.Errorf("%q is read as %q, %v; want %q", c.in, got, err, c.want)
		}
		if again, err := ring.ParseBalancers(got); err != nil || !slices.Equal(again, got) {
			t.Errorf("%q is read again as %q, %v", got, again, err)
		}
		p := ring.DefaultPolicies()
		p.Balancers = got
		if err := p.Check(); err != nil {
			t.Error(err)
		}
	}
	for in, words := range map[string]string{
		"lb.example.org":      "is no IP address",
		"":                    `"" is no IP address`,
		"192.0.2.1:25":        "is no IP address",
		"192.0.2.0/33":        "is no block of IP addresses",
		"fe80::1%eth0":        "zone",
		"0.0.0.0/0":           "everybody",
		"::/0":                "everybody",
		"0.0.0.0":             "nobody's address",
		"::ffff:192.0.2.0/96": "IPv6 clothes",
	} {
		_, err := ring.ParseBalancers([]string{"192.0.2.1", in})
		if err == nil || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), "such as") {
			t.Errorf("%q: %v", in, err)
		}
	}
	many := make([]string, 65)
	for i := range many {
		many[i] = fmt.Sprintf("192.0.2.%d", i)
	}
	if _, err := ring.ParseBalancers(many); err == nil || !strings.Contains(err.Error(), "at most 64") {
		t.Errorf("%v", err)
	}
	for _, wrong := range [][]string{{"b", "a"}, {"192.0.2.2", "192.0.2.1"}, {"192.0.2.1", "192.0.2.1"}, {"192.0.2.1/32"}, many} {
		p := ring.DefaultPolicies()
		p.Balancers = wrong
		if p.Check() == nil {
			t.Errorf("%q is taken", wrong)
		}
	}
}

func TestTrustsBalancer(t *testing.T) {
	p := ring.Policies{Balancers: []string{"192.0.2.10", "198.51.100.16/28", "2001:db8::/64"}}
	for addr, want := range map[string]bool{
		"192.0.2.10": true, "192.0.2.11": false, "::ffff:192.0.2.10": true, "198.51.100.31": true, "198.51.100.32": false,
		"2001:db8::7": true, "2001:db8::7%eth0": true, "2001:db8:1::7": false, "127.0.0.1": false,
	} {
		if got := p.TrustsBalancer(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
	if p.TrustsBalancer(netip.Addr{}) || (ring.Policies{}).TrustsBalancer(netip.MustParseAddr("192.0.2.10")) {
		t.Error("trusts whom nobody named")
	}
}

func TestPoliciesEqual(t *testing.T) {
	p, q := ring.DefaultPolicies(), ring.DefaultPolicies()
	q.Balancers = []string{}
	if !p.Equal(q) || !q.Equal(p) {
		t.Error("no balancers are no balancers")
	}
	q.Balancers = []string{"192.0.2.1"}
	if p.Equal(q) {
		t.Error("other balancers")
	}
	p.Balancers = []string{"192.0.2.1"}
	if q.AckTimeout++; !p.Equal(p) || p.Equal(q) {
		t.Error("another policy")
	}
}
