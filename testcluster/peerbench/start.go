package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"

	"chainmail/node/api"
	"chainmail/testcluster/load"
	"chainmail/testcluster/machine"
)

// start measures how the time to start, to list and to get depends on the
// number of receipts.
func (b *bench) start(ctx context.Context) error {
	b.printf("## Start, list and get as the archive grows\n\nMails of 1 KiB. Start is from exec to the first 200 of /readyz; list and get are requests on the administrator's socket.\n\n")
	dir, remove, err := b.subdir("start")
	if err != nil {
		return err
	}
	defer remove()
	counts := []int64{10_000, 100_000, 1_000_000}
	if b.quick {
		counts = counts[:2]
	}
	var rows [][]string
	var have int64
	for _, count := range counts {
		row, err := b.startWith(ctx, dir, count-have)
		if errors.Is(err, errAbsent) {
			b.printf("%v\n\n", err)
			return nil
		}
		if err != nil {
			return err
		}
		have = count
		rows = append(rows, append([]string{fmt.Sprint(count)}, row...))
	}
	b.table([]string{"receipts", "start", "start after kill -9", "idle, resident", "list, first 100", "list, last 100", "get, first", "get, last"}, rows)
	return nil
}

// startWith adds mails to the archive in dir and measures it.
func (b *bench) startWith(ctx context.Context, dir string, mails int64) ([]string, error) {
	n, err := b.startNode(ctx, dir)
	if err != nil {
		return nil, err
	}
	progress("adding %d mails", mails)
	report, err := load.Run(ctx, load.Options{Target: n.addr, Sessions: 32, Size: 1 << 10, Count: mails, BDAT: true})
	if err != nil {
		return nil, errors.Join(err, n.stop())
	}
	if report.Acked != mails {
		return nil, errors.Join(fmt.Errorf("not all mail was taken:\n%s", report), n.stop())
	}
	if err := n.end(syscall.SIGKILL); err != nil {
		return nil, err
	}
	if n, err = b.startNode(ctx, dir); err != nil {
		return nil, err
	}
	afterKill := n.took
	var starts []time.Duration
	for range 3 {
		if err := n.stop(); err != nil {
			return nil, err
		}
		if n, err = b.startNode(ctx, dir); err != nil {
			return nil, err
		}
		starts = append(starts, n.took)
	}
	row := []string{millis(median(starts)), millis(afterKill)}
	times, err := b.listAndGet(ctx, n)
	return append(row, times...), errors.Join(err, n.stop())
}

// listAndGet asks over the socket, each question 21 times, and gives medians,
// after the resident set.
func (b *bench) listAndGet(ctx context.Context, n *node) ([]string, error) {
	if _, err := machine.Settle(ctx, n.server.pid); err != nil {
		return nil, err
	}
	kib, err := procField(n.server.pid, "status", "VmRSS")
	if err != nil {
		return nil, err
	}
	a := admin{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", n.socket)
		},
	}}}
	defer a.client.CloseIdleConnections()
	var status api.Status
	if err := a.json("/status", &status); err != nil {
		return nil, err
	}
	var first, last api.MessageList
	row := []string{mib(kib << 10)}
	ask := func(path string, into any) error {
		var took []time.Duration
		for range 21 {
			begun := time.Now()
			if err := a.json(path, into); err != nil {
				return err
			}
			took = append(took, time.Since(begun))
		}
		row = append(row, millis(median(took)))
		return nil
	}
	if err := ask("/messages?limit=100", &first); err != nil {
		return nil, err
	}
	lastPage := fmt.Sprintf("/messages?limit=100&after=%s:%d", status.Store, status.Receipts-100)
	if err := ask(lastPage, &last); err != nil {
		return nil, err
	}
	for name, page := range map[string]api.MessageList{"first": first, "last": last} {
		if len(page.Messages) != 100 {
			return nil, fmt.Errorf("the %s page has %d messages", name, len(page.Messages))
		}
	}
	for _, m := range []api.Message{first.Messages[0], last.Messages[99]} {
		if err := ask("/messages/"+m.SHA256+"/raw", nil); err != nil {
			return nil, err
		}
	}
	return row, nil
}

// admin asks a node over its socket.
type admin struct{ client *http.Client }

// json reads an answer into a value; nil reads it as it is and drops it.
func (a admin) json(path string, into any) error {
	resp, err := a.client.Get("http://node" + api.Prefix + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	if into != nil {
		return json.NewDecoder(resp.Body).Decode(into)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
