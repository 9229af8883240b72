package local

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"chainmail/lb"
	"chainmail/node/api"
	"chainmail/node/client"
)

// tokenName is for people who list the cluster's tokens.
const tokenName = "balancer of testcluster run"

// stopTimeout is how long sessions by way of the balancer may go on when it is
// asked to end: less than Grace.
const stopTimeout = 10 * time.Second

func (p *Processes) tokenFile() string { return filepath.Join(p.DataDir(Balancer), "token") }

func (p *Processes) configFile() string { return filepath.Join(p.DataDir(Balancer), "lb.yaml") }

// balancerCommand keeps the settings of the machine's own balancer out.
func (p *Processes) balancerCommand() []string {
	return []string{"lb", "run", "--config", p.configFile()}
}

// balancerConfig says where a balancer is and whom of the nodes it asks which
// others there are.
func (p *Processes) balancerConfig(names []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Written at each start.\ndir: %q\ntoken-file: %q\npeer:\n", p.DataDir(Balancer), p.tokenFile())
	for _, name := range names {
		fmt.Fprintf(&b, "  - %q\n", p.Addr(name, "http"))
	}
	for _, service := range services(Balancer) {
		fmt.Fprintf(&b, "%s: %q\n", service, p.Addr(Balancer, service))
	}
	if addrs, fixed := p.site.sources(); fixed {
		fmt.Fprintf(&b, "source-address: %q\n", addrs[0])
	}
	fmt.Fprintf(&b, "stop-timeout: %v\n", stopTimeout)
	return b.String()
}

// StartBalancer makes a balancer known to the cluster, gives it a token, starts
// it in front of all nodes, and returns when mail goes through it. It asks one
// of the named nodes which others there are; they must run.
func (p *Processes) StartBalancer(ctx context.Context, names ...string) error {
	// Its workers, who are not root, pass through; what is secret in it is a file's.
	if err := lb.MakeDir(p.DataDir(Balancer)); err != nil {
		return err
	}
	if err := os.WriteFile(p.configFile(), []byte(p.balancerConfig(names)), 0o600); err != nil {
		return err
	}
	if err := p.trustBalancer(ctx, names); err != nil {
		return fmt.Errorf("cannot make the balancer known to the cluster: %w", err)
	}
	if err := p.giveToken(ctx, names[0]); err != nil {
		return fmt.Errorf("cannot give the balancer a token: %w", err)
	}
	return p.start(ctx, Balancer, func(ctx context.Context) bool { return p.greets(ctx) == nil })
}

// trustBalancer adds the balancer's addresses to the policy, and waits until all
// nodes know them: one that does not takes a PROXY header for a command.
func (p *Processes) trustBalancer(ctx context.Context, names []string) error {
	sources, _ := p.site.sources()
	for i, name := range names {
		c := p.Client(name)
		err := trust(ctx, c, sources, i == 0)
		c.Close()
		if err != nil && (p.PID(name) != 0 || !p.left(name)) {
			return fmt.Errorf("node %s: %w", name, err)
		}
	}
	return nil
}

// trust waits until a node believes the sources; with set, it makes it so.
func trust(ctx context.Context, c *client.Client, sources []string, set bool) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		view, err := c.Cluster(ctx)
		if err != nil {
			return err
		}
		all := slices.Clone(view.Policies.Balancers)
		for _, s := range sources {
			if !slices.Contains(all, s) {
				all = append(all, s)
			}
		}
		if len(all) == len(view.Policies.Balancers) {
			return nil
		}
		if set {
			if _, err := c.SetPolicies(ctx, api.PolicyChange{Balancers: &all}); err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// giveToken makes a new token in place of the one of the last start: that one
// may be of a cluster that is no more.
func (p *Processes) giveToken(ctx context.Context, node string) error {
	c := p.Client(node)
	defer c.Close()
	tokens, err := c.Tokens(ctx)
	if err != nil {
		return err
	}
	for _, t := range tokens {
		if t.Name == tokenName {
			if _, err := c.RevokeToken(ctx, t.ID); err != nil {
				return err
			}
		}
	}
	t, err := c.MakeToken(ctx, api.TokenRequest{Name: tokenName, Scope: api.ScopeCluster})
	if err != nil {
		return err
	}
	return os.WriteFile(p.tokenFile(), []byte(t.Secret+"\n"), 0o600)
}

// greets asks the balancer for the greeting of a node.
func (p *Processes) greets(ctx context.Context) error {
	conn, err := p.Dial(ctx, Client, p.Addr(Balancer, "smtp"))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && !strings.HasPrefix(line, "220") {
		err = errors.New(strings.TrimSpace(line))
	}
	if err == nil {
		_, err = conn.Write([]byte("QUIT\r\n"))
	}
	return err
}
