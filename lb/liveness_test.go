package lb_test

import (
	"strings"
	"testing"
	"time"

	"chainmail/lb"
)

// transcript drives a Liveness of 3 s and 2 s: each line is a second and what is
// seen of a, b and c in SMTP, then the balancer's answer. "." is in, u, d, f, s x
// and n are the reasons, - is no member.
func TestLiveness(t *testing.T) {
	outs := map[byte]lb.Out{'.': lb.In, 'u': lb.Unreachable, 'd': lb.Draining, 'f': lb.Full, 's': lb.Starting, 'x': lb.CutOff, 'n': lb.NoSMTP}
	for name, script := range map[string]string{
		"a lost packet changes nothing":  `0 ... ...; 1 .u. ...; 2 ... ...; 3 .u. ...; 5 .u. ...; 6 .u. .u.`,
		"gone after three seconds":       `0 ... ...; 1 u.. ...; 2 u.. ...; 3 u.. ...; 4 u.. u..; 9 u.. u..`,
		"back after two":                 `0 u.. u..; 1 ... u..; 2 ... u..; 3 ... ...`,
		"flapping stays out":             `0 u.. u..; 1 ... u..; 2 u.. u..; 3 ... u..; 4 u.. u..; 5 ... u..; 7 ... ...`,
		"draining and full count now":    `0 ... ...; 1 d.. d..; 2 df. df.`,
		"full is over after two seconds": `0 ... ...; 1 f.. f..; 2 ... f..; 4 ... ...`,
		"a quick restart is no change":   `0 ... ...; 1 u.. ...; 2 s.. ...; 3 ... ...`,
		"a slow start is one":            `0 ... ...; 1 s.. ...; 4 s.. s..`,
		"the first reason stays":         `0 ... ...; 1 d.. d..; 2 u.. d..; 3 s.. d..`,
		"cut off waits too":              `0 ... ...; 1 ..x ...; 4 ..x ..x`,
		"a silent SMTP port waits":       `0 ... ...; 1 ..n ...; 3 ..n ...; 4 ..n ..n; 5 ... ..n; 7 ... ...`,
		"and is never the last":          `0 ... ...; 1 nnn ...; 9 nnn ...`,
		"nobody left: as it was":         `0 ..u ..u; 1 uuu ..u; 9 uuu ..u; 10 u.u ..u; 12 u.u u.u`,
		"nobody from the start: all":     `0 uuu ...; 5 uuu ...; 6 .uu ...; 8 .uu .uu`,
		"a member that left is gone":     `0 ... ...; 1 .-. .-.; 2 .u. .u.`,
		"a new one counts at once":       `0 .-. .-.; 1 ... ...`,
		"all drain: as it was":           `0 ... ...; 1 ddd ...`,
	} {
		t.Run(name, func(t *testing.T) {
			l := lb.NewLiveness(3*time.Second, 2*time.Second)
			epoch := time.Unix(0, 0)
			for _, line := range strings.Split(script, ";") {
				f := strings.Fields(line)
				second, err := time.ParseDuration(f[0] + "s")
				if err != nil {
					t.Fatal(err)
				}
				var seen lb.Cluster
				for i := range f[1] {
					if f[1][i] != '-' {
						seen.Nodes = append(seen.Nodes, lb.Node{Name: string(rune('a' + i)), Mail: outs[f[1][i]]})
					}
				}
				is := l.Update(epoch.Add(second), seen)
				got := []byte("---")
				for _, n := range is.Nodes {
					for letter, out := range outs {
						if out == n.Mail {
							got[n.Name[0]-'a'] = letter
						}
					}
				}
				if string(got) != f[2] {
					t.Fatalf("second %s, seen %s: got %s, want %s", f[0], f[1], got, f[2])
				}
			}
		})
	}
}

// TestLivenessOfASilentNode: it leaves both services at once, whichever was seen to
// fail first.
func TestLivenessOfASilentNode(t *testing.T) {
	l := lb.NewLiveness(3*time.Second, 2*time.Second)
	at := func(second int, mail, web lb.Out) (lb.Out, lb.Out) {
		c := l.Update(time.Unix(int64(second), 0), lb.Cluster{Nodes: []lb.Node{{Name: "a", Mail: mail, Web: web}, {Name: "b"}}})
		return c.Nodes[0].Mail, c.Nodes[0].Web
	}
	at(0, lb.In, lb.In)
	at(1, lb.In, lb.Unreachable)
	at(3, lb.Unreachable, lb.Unreachable)
	if mail, web := at(4, lb.Unreachable, lb.Unreachable); mail != lb.Unreachable || web != lb.Unreachable {
		t.Error(mail, web)
	}
	if mail, web := at(5, lb.In, lb.In); mail != lb.Unreachable || web != lb.Unreachable {
		t.Error(mail, web)
	}
	if mail, web := at(7, lb.In, lb.In); mail != lb.In || web != lb.In {
		t.Error(mail, web)
	}
	at(8, lb.In, lb.Unreachable) // its HTTP port alone is shut
	if mail, web := at(11, lb.In, lb.Unreachable); mail != lb.In || web != lb.Unreachable {
		t.Error(mail, web)
	}
}
