package smtpd_test

import (
	"net"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"

	"chainmail/node/smtpd"
)

// TestProxyWithoutAnAddress: a header that names no client with an address of
// TCP opens no more than the balancer's own address does.
func TestProxyWithoutAnAddress(t *testing.T) {
	format := func(h *proxyproto.Header) string {
		b, err := h.Format()
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for name, header := range map[string]string{
		"a unix socket": format(proxyproto.HeaderProxyFromAddrs(2, &net.UnixAddr{Net: "unix", Name: "/run/client"}, &net.UnixAddr{Net: "unix", Name: "/run/lb"})),
		"datagrams":     format(proxyproto.HeaderProxyFromAddrs(2, &net.UDPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1}, &net.UDPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 2})),
		"UNKNOWN":       "PROXY UNKNOWN\r\n",
		"LOCAL":         format(&proxyproto.Header{Version: 2, Command: proxyproto.LOCAL}),
		"IPv4 in IPv6":  "PROXY TCP6 ::ffff:192.0.2.7 ::ffff:192.0.2.1 4711 25\r\n",
	} {
		for _, allowed := range []string{"10.0.0.0/8", "127.0.0.1"} {
			t.Run(name+" "+allowed, func(t *testing.T) {
				s := start(t, func(o *smtpd.Options) {
					o.Connectors[0].ProxyFrom, o.Connectors[0].Clients = []string{"127.0.0.1"}, []string{allowed}
				})
				c := s.dial()
				c.send(header + "EHLO x\r\nMAIL FROM:<a@b.c>\r\n")
				var all []string
				for {
					reply, err := c.reply()
					if err != nil {
						break
					}
					all = append(all, reply)
					if strings.HasPrefix(reply, "554") || strings.Contains(reply, "accepting mail") {
						break
					}
				}
				got, want := all[len(all)-1], "554 5.7.1 your address 127.0.0.1 may not"
				switch {
				case name == "IPv4 in IPv6":
					want = "554 5.7.1 your address 192.0.2.7 may not"
				case allowed == "127.0.0.1":
					want = "250"
				}
				if !strings.HasPrefix(got, want) {
					t.Errorf("%q, want %q", all, want)
				}
			})
		}
	}
}
