package httpd_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"chainmail/node/api"
	"chainmail/node/httpd"
)

func TestSyncz(t *testing.T) {
	n, f, _ := startCluster(t, nil)
	if got := n.public("GET", "/syncz", "").want(http.StatusOK); string(got.body) != `{"in_sync":true,"lacks":0,"lost":0}`+"\n" {
		t.Errorf("%s", got.body)
	}
	lacks := uint64(3)
	f.mu.Lock()
	f.sync = api.Sync{Lacks: &lacks, Lost: 1, Reason: "it lacks 3 receipts"}
	f.mu.Unlock()
	if got := n.public("GET", "/syncz", "").want(http.StatusServiceUnavailable); string(got.body) != `{"in_sync":false,"lacks":3,"lost":1,"reason":"it lacks 3 receipts"}`+"\n" {
		t.Errorf("%s", got.body)
	}
	if f.last() != "" {
		t.Errorf("the node was asked for %q: it must be cheap", f.last())
	}
	alone := start(t, nil)
	var s api.Sync
	alone.public("GET", "/syncz", "").json(http.StatusServiceUnavailable, &s)
	if s.InSync || s.Lacks != nil || !strings.Contains(s.Reason, "in no cluster") {
		t.Errorf("%+v", s)
	}
}

func TestCA(t *testing.T) {
	n, f, _ := startCluster(t, nil)
	if got := n.public("GET", "/api/v1/cluster/ca", "").want(http.StatusOK); !bytes.Equal(got.body, f.CA()) {
		t.Errorf("%s", got.body)
	}
	start(t, nil).public("GET", "/api/v1/cluster/ca", "").refused(http.StatusNotFound, "in no cluster")
}

// seen is the address of the client by which a request is known, from the log.
func seen(t *testing.T, change func(*httpd.Options), ask func(n *node)) []string {
	t.Helper()
	var (
		mu  sync.Mutex
		log bytes.Buffer
	)
	n, _, _ := startCluster(t, func(o *httpd.Options) {
		o.Logger = slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return log.Write(p)
		}), &slog.HandlerOptions{Level: slog.LevelDebug}))
		change(o)
	})
	ask(n)
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	var clients []string
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, "/readyz") {
			_, client, _ := strings.Cut(line, "client=")
			clients = append(clients, strings.TrimSpace(client))
		}
	}
	return clients
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestForwardedFor: only a balancer's own word on its client counts.
func TestForwardedFor(t *testing.T) {
	trust := func(o *httpd.Options) { o.Balancer = netip.MustParsePrefix("127.0.0.0/8").Contains }
	for name, c := range map[string]struct {
		change func(*httpd.Options)
		header []string
		want   string // prefix
	}{
		"no balancers":      {func(*httpd.Options) {}, []string{"192.0.2.7"}, "127.0.0.1:"},
		"not this one":      {func(o *httpd.Options) { o.Balancer = func(netip.Addr) bool { return false } }, []string{"192.0.2.7"}, "127.0.0.1:"},
		"one":               {trust, []string{"192.0.2.7"}, "192.0.2.7"},
		"spoofed before it": {trust, []string{"203.0.113.1, 203.0.113.2 , 192.0.2.7"}, "192.0.2.7"},
		"spoofed line":      {trust, []string{"203.0.113.1", "192.0.2.7"}, "192.0.2.7"},
		"IPv6":              {trust, []string{"2001:db8::7"}, "2001:db8::7"},
		"IPv6 and port":     {trust, []string{"[2001:db8::7]:1234"}, "2001:db8::7"},
		"IPv4 and port":     {trust, []string{"192.0.2.7:1234"}, "192.0.2.7"},
		"mapped":            {trust, []string{"::ffff:192.0.2.7"}, "192.0.2.7"},
		"none":              {trust, nil, "127.0.0.1:"},
		"nonsense last":     {trust, []string{"192.0.2.7, unknown"}, "127.0.0.1:"},
		"empty last":        {trust, []string{"192.0.2.7,"}, "127.0.0.1:"},
	} {
		t.Run(name, func(t *testing.T) {
			got := seen(t, c.change, func(n *node) {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, n.tcp+"/readyz", nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Header["X-Forwarded-For"] = c.header
				resp, err := new(http.Client).Do(req)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
			})
			if len(got) != 1 || !strings.HasPrefix(got[0], c.want) || strings.HasSuffix(c.want, ":") == (got[0] == c.want) {
				t.Errorf("the client is %q, want %q", got, c.want)
			}
		})
	}
	t.Run("admin socket", func(t *testing.T) {
		got := seen(t, trust, func(n *node) { n.admin("GET", "/readyz", "", "X-Forwarded-For", "192.0.2.7") })
		if len(got) != 1 || strings.Contains(got[0], "192.0.2.7") {
			t.Errorf("the client is %q", got)
		}
	})
}

// TestRightsDoNotFollowTheAddress: whoever is forwarded needs a token all the
// same.
func TestRightsDoNotFollowTheAddress(t *testing.T) {
	n, _, _ := startCluster(t, func(o *httpd.Options) { o.Balancer = func(netip.Addr) bool { return true } })
	for _, claimed := range []string{"127.0.0.1", "@", "localhost", "::1"} {
		n.public("GET", "/api/v1/status", "", "X-Forwarded-For", claimed).refused(http.StatusUnauthorized, "token")
	}
}

// TestPolledCluster: programs that ask often wait for no frozen member, and
// people and nodes are told what is now.
func TestPolledCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := httpd.NewClusterPoll()
		var made atomic.Uint64
		ask := func(ctx context.Context) (api.Cluster, error) {
			epoch := made.Add(1)
			select {
			case <-time.After(time.Second): // a frozen member
			case <-ctx.Done():
				return api.Cluster{}, ctx.Err()
			}
			return api.Cluster{Epoch: epoch}, nil
		}
		get := func() (uint64, time.Duration) {
			t.Helper()
			began := time.Now()
			c, err := p.Get(t.Context(), ask)
			if err != nil {
				t.Error(err)
			}
			return c.Epoch, time.Since(began)
		}
		if epoch, took := get(); epoch != 1 || took != time.Second {
			t.Errorf("the first one is answered %d after %s", epoch, took)
		}
		for i := range 100 { // two balancers, each every second
			time.Sleep(500 * time.Millisecond)
			if epoch, took := get(); took != 0 || epoch+2 < made.Load() {
				t.Fatalf("poll %d is answered %d of %d after %s", i, epoch, made.Load(), took)
			}
		}
		if made := made.Load(); made < 25 || made > 60 {
			t.Errorf("100 polls in 50 s made %d answers", made)
		}
		time.Sleep(time.Minute)
		before := made.Load()
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if epoch, took := get(); took != time.Second || epoch != made.Load() {
					t.Errorf("after a pause it is answered %d after %s", epoch, took)
				}
			})
		}
		wg.Wait()
		if made := made.Load() - before; made != 1 {
			t.Errorf("20 who asked at once made %d answers", made)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.Sleep(time.Minute)
		time.AfterFunc(time.Millisecond, cancel)
		if _, err := p.Get(ctx, ask); !errors.Is(err, context.Canceled) {
			t.Errorf("who went away is told %v", err)
		}
		began := time.Now()
		p.End()
		if time.Since(began) > 0 {
			t.Error("the end waits for a frozen member")
		}
		time.Sleep(time.Minute)
		if _, err := p.Get(t.Context(), ask); err == nil {
			t.Error("it answers after its end")
		}
	})
}

// TestPollFails: an error is told, and the next answer is a new one.
func TestPollFails(t *testing.T) {
	n, f, _ := startCluster(t, nil)
	ask := func() reply {
		return n.public("GET", "/api/v1/cluster", "", "Authorization", "Bearer "+n.clusterToken)
	}
	f.fail(&httpd.StatusError{Code: http.StatusNotFound, Text: "no cluster yet"})
	ask().refused(http.StatusNotFound, "no cluster yet")
	f.fail(nil)
	ask().want(http.StatusOK)
	f.fail(errDisk)
	ask().want(http.StatusOK) // the answer of a moment ago
	n.admin("GET", "/api/v1/cluster", "").refused(http.StatusInternalServerError, "input/output error")
}
