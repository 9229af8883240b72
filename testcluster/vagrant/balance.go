package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// rejoin is how long the balancer may take to give mail to a node that is well again.
const rejoin = 2 * time.Minute

// shared waits until every node gets mail of the balancer, and tells how much each
// got meanwhile.
func (d *drill) shared(ctx context.Context) error {
	start := time.Now()
	before := map[string]float64{}
	for {
		share, waits := map[string]float64{}, ""
		for _, node := range d.nodes {
			n, err := d.taken(ctx, node)
			if err != nil {
				waits = err.Error()
				continue
			}
			if _, known := before[node]; !known {
				before[node] = n
			}
			if share[node] = n - before[node]; share[node] < 5 {
				waits = node + " gets no mail"
			}
		}
		if waits == "" {
			d.say("the balancer gives mail to all nodes (%s): %s", seconds(time.Since(start)), percent(share, d.nodes))
			return nil
		}
		if time.Since(start) > rejoin {
			return fmt.Errorf("the balancer does not give mail to all nodes after %v: %s", rejoin, waits)
		}
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
	}
}

func percent(share map[string]float64, nodes []string) string {
	total := 0.0
	for _, n := range share {
		total += n
	}
	var parts []string
	for _, node := range nodes {
		parts = append(parts, fmt.Sprintf("%s %.0f %%", node, 100*share[node]/total))
	}
	return strings.Join(parts, ", ")
}

// taken is how many mails of clients a node took since it started, by its metrics.
func (d *drill) taken(ctx context.Context, node string) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	url := "http://" + net.JoinHostPort(d.front[node].String(), "8025") + "/metrics"
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s: %s", url, answer.Status)
	}
	return sumTaken(answer.Body)
}

// sumTaken adds up the answers 250 of all connectors but the chain's.
func sumTaken(metrics io.Reader) (sum float64, err error) {
	s := bufio.NewScanner(metrics)
	for s.Scan() {
		labels, value, ok := strings.Cut(s.Text(), "} ")
		if !ok || !strings.HasPrefix(labels, "chainmail_smtp_messages_total{") ||
			!strings.Contains(labels, `code="250"`) || strings.Contains(labels, `connector="chain"`) {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, s.Err()
}

// trueClient checks that a receipt names the client that sent the mail, not the
// balancer.
func (d *drill) trueClient(ctx context.Context) error {
	out, err := d.lab.on(ctx, d.nodes[0], nil, "chainmail list --limit 1 -o json")
	if err != nil {
		return err
	}
	client, err := clientOf(out)
	if err != nil {
		return err
	}
	us, err := d.ourAddress(ctx)
	if err != nil {
		return err
	}
	if client != us {
		return fmt.Errorf("the receipt of a mail that came from %v says %v: does the balancer send a PROXY header, and is it in the policy balancers?", us, client)
	}
	d.say("receipts name the true client, %v", client)
	return nil
}

// clientOf reads the client's address of a message that chainmail list printed.
func clientOf(message []byte) (netip.Addr, error) {
	var m struct {
		Receipts []struct {
			Client netip.AddrPort `json:"client"`
		} `json:"receipts"`
	}
	if err := json.Unmarshal(message, &m); err != nil {
		return netip.Addr{}, err
	}
	if len(m.Receipts) == 0 {
		return netip.Addr{}, fmt.Errorf("no receipt in %s", message)
	}
	return m.Receipts[0].Client.Addr(), nil
}

// ourAddress is where this machine's mail to the balancer comes from.
func (d *drill) ourAddress(ctx context.Context) (netip.Addr, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "udp", d.target) // sends nothing
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	at, err := netip.ParseAddrPort(conn.LocalAddr().String())
	return at.Addr(), err
}
