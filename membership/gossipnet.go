package membership

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// gossipTransport carries memberlist's packets and streams. It sends to members
// only: memberlist names whom it means, and the address comes from the view. So
// the IP addresses that memberlist itself insists on are made up from the
// members' names (see gossipIP): memberlist never asks the DNS, and never takes
// a node that moved, or took another's place, for an impostor.
type gossipTransport struct {
	network  Network
	listener net.Listener
	packets  net.PacketConn
	address  func(name string) (hostport string, ok bool) // of a member
	hosts    *hosts
	dialling context.Context

	incoming chan *memberlist.Packet
	streams  chan net.Conn
	done     chan struct{}
	once     sync.Once
	wg       sync.WaitGroup
}

// queuedPackets wait for memberlist; more are dropped, as a full socket buffer
// would.
const queuedPackets = 512

// maxPacket is more than memberlist ever sends.
const maxPacket = 64 << 10

// gossipPort is the port that goes with the made-up addresses.
const gossipPort = 1

// gossipIP is the made-up address of a member: a unique local one (RFC 4193).
func gossipIP(name string) net.IP {
	h := sha256.Sum256([]byte(name))
	ip := net.IP(h[:net.IPv6len])
	ip[0] = 0xfd
	return ip
}

func newGossipTransport(n Network, bind string, address func(string) (string, bool)) (*gossipTransport, error) {
	l, p, err := n.listenBoth(bind)
	if err != nil {
		return nil, err
	}
	return &gossipTransport{
		network: n, listener: l, packets: p, address: address, hosts: newHosts(n.Lookup),
		incoming: make(chan *memberlist.Packet, queuedPackets),
		streams:  make(chan net.Conn),
		done:     make(chan struct{}),
	}, nil
}

// start begins to read. When ctx ends, nothing is dialled any more.
func (t *gossipTransport) start(ctx context.Context) {
	t.dialling = ctx
	t.wg.Go(t.readPackets)
	t.wg.Go(t.accept)
}

func (t *gossipTransport) readPackets() {
	buf := make([]byte, maxPacket)
	for {
		n, from, err := t.packets.ReadFrom(buf)
		if err != nil {
			if t.over(err) {
				return
			}
			continue // such as an ICMP error that an earlier packet caused
		}
		select {
		case t.incoming <- &memberlist.Packet{Buf: append([]byte{}, buf[:n]...), From: from, Timestamp: time.Now()}:
		default:
		}
	}
}

func (t *gossipTransport) accept() {
	for {
		c, err := t.listener.Accept()
		if err != nil {
			if t.over(err) {
				return
			}
			continue
		}
		select {
		case t.streams <- c:
		case <-t.done:
			c.Close()
			return
		}
	}
}

// over reports whether the transport ends; after another error it waits a
// little, so that a lasting one does not spin.
func (t *gossipTransport) over(err error) bool {
	if closed(err) {
		return true
	}
	select {
	case <-t.done:
		return true
	case <-time.After(20 * time.Millisecond):
		return false
	}
}

// FinalAdvertiseAddr and the methods after it are those of
// memberlist.NodeAwareTransport.
func (t *gossipTransport) FinalAdvertiseAddr(ip string, port int) (net.IP, int, error) {
	return net.ParseIP(ip), port, nil
}

func (t *gossipTransport) PacketCh() <-chan *memberlist.Packet { return t.incoming }

func (t *gossipTransport) StreamCh() <-chan net.Conn { return t.streams }

func (t *gossipTransport) WriteTo(_ []byte, addr string) (time.Time, error) {
	return time.Time{}, fmt.Errorf("nobody is known at %s", addr)
}

func (t *gossipTransport) DialTimeout(addr string, _ time.Duration) (net.Conn, error) {
	return nil, fmt.Errorf("nobody is known at %s", addr)
}

func (t *gossipTransport) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	hostport, ok := t.address(to.Name)
	if !ok {
		return time.Time{}, fmt.Errorf("%s is not a member", to.Name)
	}
	addr, err := t.hosts.resolve(hostport)
	if err != nil {
		return time.Time{}, err
	}
	_, err = t.packets.WriteTo(b, net.UDPAddrFromAddrPort(addr))
	return time.Now(), err
}

func (t *gossipTransport) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	hostport, ok := t.address(to.Name)
	if !ok {
		return nil, fmt.Errorf("%s is not a member", to.Name)
	}
	ctx, cancel := context.WithTimeout(t.dialling, timeout)
	defer cancel()
	return t.network.Dial(ctx, "tcp", hostport)
}

// Shutdown closes the sockets and waits for their readers.
func (t *gossipTransport) Shutdown() error {
	t.once.Do(func() {
		close(t.done)
		t.listener.Close()
		t.packets.Close()
	})
	t.wg.Wait()
	t.hosts.stop()
	return nil
}

// hosts finds the IP addresses of host names without making anybody wait for
// long: an answer serves for hostFresh, then a new one is looked for while the
// old one still serves.
type hosts struct {
	lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	ctx    context.Context
	stop   context.CancelFunc

	mu    sync.Mutex
	known map[string]*host
}

type host struct {
	addr  netip.Addr
	err   error
	at    time.Time     // of the answer
	asked chan struct{} // closed when the question under way is answered; nil: none is
}

const (
	hostFresh   = 30 * time.Second
	hostWait    = time.Second     // what a packet waits for the first answer
	hostTimeout = 5 * time.Second // of a question
)

func newHosts(lookup func(context.Context, string) ([]netip.Addr, error)) *hosts {
	h := &hosts{lookup: lookup, known: map[string]*host{}}
	h.ctx, h.stop = context.WithCancel(context.Background())
	return h
}

func (h *hosts) resolve(hostport string) (netip.AddrPort, error) {
	name, portText, err := net.SplitHostPort(hostport)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%s: the port must be a number", hostport)
	}
	if ip, err := netip.ParseAddr(name); err == nil {
		return netip.AddrPortFrom(ip, uint16(port)), nil
	}
	ip, err := h.find(name)
	return netip.AddrPortFrom(ip, uint16(port)), err
}

func (h *hosts) find(name string) (netip.Addr, error) {
	h.mu.Lock()
	e := h.known[name]
	if e == nil {
		e = &host{err: fmt.Errorf("no address for %s yet", name)}
		h.known[name] = e
	}
	if e.asked == nil && (e.at.IsZero() || time.Since(e.at) > hostFresh) {
		e.asked = make(chan struct{})
		go h.ask(name, e)
	}
	asked, addr, err := e.asked, e.addr, e.err
	h.mu.Unlock()
	if addr.IsValid() || asked == nil {
		return addr, err
	}
	select {
	case <-asked:
	case <-time.After(hostWait):
	case <-h.ctx.Done():
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return e.addr, e.err
}

// ask looks a name up; an answer that is there already survives a failure.
func (h *hosts) ask(name string, e *host) {
	ctx, cancel := context.WithTimeout(h.ctx, hostTimeout)
	defer cancel()
	addrs, err := h.lookup(ctx, name)
	h.mu.Lock()
	defer h.mu.Unlock()
	e.at = time.Now()
	switch {
	case err == nil && len(addrs) > 0:
		e.addr, e.err = addrs[0].Unmap(), nil
	case !e.addr.IsValid():
		e.err = fmt.Errorf("no address for %s: %w", name, err)
		e.at = e.at.Add(time.Second - hostFresh) // ask again soon
	}
	close(e.asked)
	e.asked = nil
}
