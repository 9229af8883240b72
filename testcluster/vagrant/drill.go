package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// drill is one run of the test.
type drill struct {
	options
	lab   *lab
	acked *ackList
	list  string // the file that acked writes
	out   io.Writer
	begun time.Time

	provider string
	nodes    []string                // in the order of the Vagrantfile
	front    map[string]netip.Addr   // address of a host on the clients' network
	networks map[string]netip.Prefix // front and chain
	target   string                  // where the balancer takes mail
}

// say prints a line with the time since the drill began.
func (d *drill) say(format string, args ...any) {
	fmt.Fprintf(d.out, "[%7.1f s] %s\n", time.Since(d.begun).Seconds(), fmt.Sprintf(format, args...))
}

func seconds(t time.Duration) string { return fmt.Sprintf("%.1f s", t.Seconds()) }

// prepare makes the hosts that are missing and learns what there is.
func (d *drill) prepare(ctx context.Context) error {
	hosts, err := d.lab.hosts(ctx)
	if err != nil {
		return err
	}
	if err := d.plan(hosts); err != nil {
		return err
	}
	if slices.ContainsFunc(hosts, func(h host) bool { return h.State != "running" }) {
		d.say("vagrant up: %d nodes and the balancer, by %s", len(d.nodes), d.provider)
		start := time.Now()
		if err := d.lab.run(ctx, "up"); err != nil {
			return err
		}
		d.say("up and provisioned in %s", seconds(time.Since(start)))
	}
	names := make([]string, len(hosts))
	for i, h := range hosts {
		names[i] = h.Name
	}
	if err := d.lab.learn(ctx, names...); err != nil {
		return err
	}
	if err := d.addresses(ctx, names); err != nil {
		return err
	}
	d.facts(ctx)
	return d.policies(ctx)
}

// plan sees whether the hosts are enough for all steps: a test with less of them
// would show less than it says.
func (d *drill) plan(hosts []host) error {
	balancer := false
	for _, h := range hosts {
		switch {
		case strings.HasPrefix(h.Name, "node"):
			d.nodes = append(d.nodes, h.Name)
		case h.Name == "lb":
			balancer = true
		}
		d.provider = h.Provider
	}
	if len(d.nodes) < 3 || !balancer {
		return fmt.Errorf("this needs a balancer and at least 3 nodes, and the Vagrantfile has %d: set NODES=3 or more", len(d.nodes))
	}
	return nil
}

// addresses asks each host for its own on both networks.
func (d *drill) addresses(ctx context.Context, names []string) error {
	d.front, d.networks = map[string]netip.Addr{}, map[string]netip.Prefix{}
	for _, name := range names {
		out, err := d.lab.on(ctx, name, nil, "cat /var/lib/chainmail-host/who")
		if err != nil {
			return err
		}
		var self, front, chain string
		if _, err := fmt.Sscan(string(out), &self, &front, &chain); err != nil || self != name {
			return fmt.Errorf("%s was not provisioned as the Vagrantfile says: vagrant provision %s", name, name)
		}
		f, err := netip.ParseAddr(front)
		c, err2 := netip.ParseAddr(chain)
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		d.front[name] = f
		d.networks["front"] = netip.PrefixFrom(f, 24).Masked()
		d.networks["chain"] = netip.PrefixFrom(c, 24).Masked()
	}
	d.target = net.JoinHostPort(d.front["lb"].String(), "25")
	return nil
}

// facts prints what is tested here.
func (d *drill) facts(ctx context.Context) {
	line := func(name, command string) string {
		out, err := d.lab.on(ctx, name, nil, command)
		if err != nil {
			return "unknown"
		}
		return strings.TrimSpace(string(out))
	}
	version := "unknown"
	if out, err := d.lab.output(ctx, "--version"); err == nil {
		version = strings.TrimSpace(string(out))
	}
	d.say("%s, provider %s, %s", version, d.provider, time.Now().UTC().Format("2006-01-02 15:04 MST"))
	d.say("nodes: %s; Debian %s, %s", line(d.nodes[0], "chainmail version"), line(d.nodes[0], "cat /etc/debian_version"),
		line(d.nodes[0], `echo "Linux $(uname -r), $(nproc) CPU, $(awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo) MiB"`))
	d.say("balancer: %s; mail goes to %s", line("lb", "nginx -v 2>&1"), d.target)
}

// policies makes every node keep everything, so that each can be asked for all.
func (d *drill) policies(ctx context.Context) error {
	_, err := d.lab.on(ctx, d.nodes[0], nil, "chainmail cluster set replicas=all copies=2")
	return err
}

// do goes through the steps. When one fails, the state of the cluster is not what
// the next one counts on, so those that follow are not done, and told as such.
func (d *drill) do(ctx context.Context, steps []step) []result {
	results := make([]result, len(steps))
	failed := false
	for i, s := range steps {
		results[i].step = s
		if failed || ctx.Err() != nil {
			results[i].err = errNotReached
			continue
		}
		d.say("")
		d.say("== %s: %s", s.name, s.title)
		start := time.Now()
		results[i].err = d.step(ctx, s, &results[i])
		results[i].took = time.Since(start)
		if results[i].err != nil {
			failed = true
			d.say("FAILED: %v", results[i].err)
		}
	}
	return results
}

var errNotReached = errors.New("not reached")

// step lets mail flow while something breaks and is mended, and checks.
func (d *drill) step(ctx context.Context, s step, r *result) error {
	mail := d.send(ctx)
	err := d.trouble(ctx, s, r)
	report, note := mail.end()
	r.gap, r.gapAt = d.acked.longest()
	r.report = report
	d.say("mail: %d acknowledged, %d times 4xx, %d refused, %d without an answer; slowest %.1f s",
		report.Acked, report.Tempfailed, report.Refused, report.Unanswered, report.Latency.Max/1000)
	d.say("longest time without an acknowledged mail: %s, from %s on", seconds(r.gap), seconds(r.gapAt.Sub(d.begun)))
	if note != "" {
		d.say("%s", note)
	}
	if err != nil {
		return err
	}
	if report.Refused > 0 {
		return fmt.Errorf("%d mails were refused for good: %s", report.Refused, report.Complaint)
	}
	// What came in last is on its way to the last replica.
	if err := d.green(ctx); err != nil {
		return err
	}
	return d.check(ctx)
}

func (d *drill) trouble(ctx context.Context, s step, r *result) error {
	if err := sleep(ctx, d.before); err != nil {
		return err
	}
	if err := s.breaks(d, ctx); err != nil {
		return err
	}
	if err := sleep(ctx, d.hold); err != nil {
		return err
	}
	if err := s.felt(d, ctx); err != nil {
		return err
	}
	if err := s.mends(d, ctx); err != nil {
		return err
	}
	mended := time.Now()
	if err := d.green(ctx); err != nil {
		return err
	}
	r.healed = time.Since(mended)
	return d.shared(ctx)
}
