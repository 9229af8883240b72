package httpd_test

import (
	"crypto/tls"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/http2"

	"chainmail/node/httpd"
)

// TestStreamsAreBounded: whoever reaches the port may speak HTTP/2, and one
// connection must not stand for hundreds of them.
func TestStreamsAreBounded(t *testing.T) {
	n, _, ca := startCluster(t, nil)
	conn, err := tls.Dial("tcp", strings.TrimPrefix(n.tcp, "http://"), &tls.Config{RootCAs: ca.pool(), ServerName: "node.chainmail.internal", NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(conn, conn)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		s, ok := frame.(*http2.SettingsFrame)
		if !ok || s.IsAck() {
			continue
		}
		if streams, ok := s.Value(http2.SettingMaxConcurrentStreams); !ok || streams > 32 {
			t.Errorf("one connection may have %d requests at once (%v)", streams, ok)
		}
		return
	}
}

// slowMetric is a collector that waits.
type slowMetric struct{ begun, end chan struct{} }

func (slowMetric) Describe(ch chan<- *prometheus.Desc) {
	ch <- prometheus.NewDesc("slow", "", nil, nil)
}

func (m slowMetric) Collect(ch chan<- prometheus.Metric) {
	m.begun <- struct{}{}
	<-m.end
}

// TestMetricsAreBounded: an exposition takes memory and time, and whoever
// reaches the port may ask for it.
func TestMetricsAreBounded(t *testing.T) {
	m := slowMetric{make(chan struct{}), make(chan struct{})}
	n := start(t, func(o *httpd.Options) { o.Registry.MustRegister(m) })
	codes := make(chan int, 100)
	asked := 0
	for range 100 {
		go func() {
			resp, err := http.Get(n.tcp + "/metrics")
			if err != nil {
				codes <- 0
				return
			}
			defer resp.Body.Close()
			codes <- resp.StatusCode
		}()
		select {
		case <-m.begun:
			asked++
		case code := <-codes:
			if code != http.StatusServiceUnavailable || asked < 3 {
				t.Errorf("%d after %d", code, asked)
			}
			close(m.end)
			for range asked {
				if code := <-codes; code != http.StatusOK {
					t.Errorf("one that was taken is answered %d", code)
				}
			}
			return
		}
	}
	close(m.end)
	t.Errorf("%d expositions are made at once", asked)
}
