package httpd

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestClientLimit: an address that holds all it can get is refused more, and
// has room again when it lets go.
func TestClientLimit(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newClientLimit(inner, func(netip.Addr) int { return 2 })
	defer l.Close()
	accepted := make(chan net.Conn)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	dial := func() net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	dial()
	first := <-accepted
	dial()
	<-accepted
	third := dial()
	if _, err := third.Read(make([]byte, 1)); err == nil {
		t.Fatal("a third connection is served")
	}
	first.Close()
	first.Close() // a second time gives no second place
	dial()
	<-accepted
	if _, err := dial().Read(make([]byte, 1)); err == nil {
		t.Fatal("closing twice gave two places")
	}
}

// TestBalancersMayOpenMore: and leave room for others all the same.
func TestBalancersMayOpenMore(t *testing.T) {
	lb, other := netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("192.0.2.11")
	s := &Server{opts: Options{Balancer: func(a netip.Addr) bool { return a == lb }}}
	if s.mayOpen(other) != 256 || s.mayOpen(lb) != 768 || (&Server{}).mayOpen(lb) != 256 {
		t.Errorf("%d, %d, %d", s.mayOpen(other), s.mayOpen(lb), (&Server{}).mayOpen(lb))
	}
}
