package netsim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"
)

// Host is the network as one process on a host sees it.
type Host struct {
	n         *Network
	machine   *machine
	dead      bool
	listeners map[*listener]struct{}
	packets   map[*packetConn]struct{}
	tcp       map[int]*listener    // by port
	unix      map[string]*listener // by path
	udp       map[int]*packetConn  // by port
}

func newHost(n *Network, m *machine) *Host {
	return &Host{
		n: n, machine: m,
		listeners: map[*listener]struct{}{},
		packets:   map[*packetConn]struct{}{},
		tcp:       map[int]*listener{},
		unix:      map[string]*listener{},
		udp:       map[int]*packetConn{},
	}
}

// Name is the name of the host.
func (h *Host) Name() string { return h.machine.name }

// IP is the address of the host.
func (h *Host) IP() net.IP { return h.machine.ip }

// The ports that are given to those who do not ask for a certain one.
const (
	firstEphemeral = 32768
	lastEphemeral  = 60999
)

// errDead is what a process that was ended gets for everything.
var errDead = os.NewSyscallError("socket", syscall.ENETDOWN)

// Listen listens for connections: on "tcp" at "host:port", where the host is
// this one, empty or 0.0.0.0, and port 0 is a free one; or on "unix" at a
// path, which is no file. As there is one address per host, loopback is it.
func (h *Host) Listen(network, address string) (net.Listener, error) {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	l := &listener{host: h, network: network}
	err := h.bind(l, address)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: named(address), Err: err}
	}
	l.pending = newWaiter(&h.n.mu)
	h.listeners[l] = struct{}{}
	return l, nil
}

func (h *Host) bind(l *listener, address string) error {
	if h.dead || h.machine.off {
		return errDead
	}
	switch l.network {
	case "unix":
		if h.unix[address] != nil {
			return os.NewSyscallError("bind", syscall.EADDRINUSE)
		}
		l.addr = &net.UnixAddr{Name: address, Net: "unix"}
		h.unix[address] = l
		return nil
	case "tcp", "tcp4":
		port, err := h.ownPort(address)
		if err != nil {
			return err
		}
		if port == 0 {
			port = free(&h.machine.nextTCP, h.tcp)
		}
		if h.tcp[port] != nil {
			return os.NewSyscallError("bind", syscall.EADDRINUSE)
		}
		l.addr = &net.TCPAddr{IP: h.machine.ip, Port: port}
		h.tcp[port] = l
		return nil
	}
	return net.UnknownNetworkError(l.network)
}

// ListenPacket takes packets on "udp" at "host:port", as Listen does.
func (h *Host) ListenPacket(network, address string) (net.PacketConn, error) {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	p, err := h.packetConn(network, address)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: named(address), Err: err}
	}
	return p, nil
}

func (h *Host) packetConn(network, address string) (*packetConn, error) {
	if network != "udp" && network != "udp4" {
		return nil, net.UnknownNetworkError(network)
	}
	if h.dead || h.machine.off {
		return nil, errDead
	}
	port, err := h.ownPort(address)
	if err != nil {
		return nil, err
	}
	if port == 0 {
		port = free(&h.machine.nextUDP, h.udp)
	}
	if h.udp[port] != nil {
		return nil, os.NewSyscallError("bind", syscall.EADDRINUSE)
	}
	p := &packetConn{host: h, local: &net.UDPAddr{IP: h.machine.ip, Port: port}, reading: newWaiter(&h.n.mu)}
	h.udp[port] = p
	h.packets[p] = struct{}{}
	return p, nil
}

// ownPort is the port of an address that must be this host's.
func (h *Host) ownPort(address string) (int, error) {
	m, port, err := h.resolve(address)
	if err == nil && m != h.machine {
		err = os.NewSyscallError("bind", syscall.EADDRNOTAVAIL)
	}
	return port, err
}

// resolve finds the machine and the port of "host:port". A host is named by
// its IP address or its name; an empty one, 0.0.0.0 and loopback are this one.
func (h *Host) resolve(address string) (*machine, int, error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, 0, err
	}
	port, err := strconv.Atoi(service)
	if err != nil || port < 0 || port > 65535 {
		return nil, 0, &net.AddrError{Err: "invalid port", Addr: address}
	}
	if ip := net.ParseIP(host); host == "" || host == "localhost" || ip != nil && (ip.IsUnspecified() || ip.IsLoopback()) {
		return h.machine, port, nil
	} else if m := h.n.byIP[host]; ip != nil {
		return m, port, nil // nil: no such host
	}
	m := h.n.machines[host]
	if m == nil {
		return nil, 0, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return m, port, nil
}

// free finds a port that nobody uses, from next on.
func free[S any](next *int, used map[int]S) int {
	for {
		port := *next
		if *next++; *next > lastEphemeral {
			*next = firstEphemeral
		}
		if _, taken := used[port]; !taken {
			return port
		}
	}
}

// named is an address that was asked for, for an error's text.
type named string

func (named) Network() string  { return "" }
func (a named) String() string { return string(a) }

// Dial connects to an address of "tcp" or "unix", or gives a socket that
// sends to an address of "udp". It takes a round trip; where nobody answers it
// hangs until ctx ends, or for as long as Linux tries.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	c, err := h.dial(ctx, network, address)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: named(address), Err: err}
	}
	return c, nil
}

func (h *Host) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if h.dead || h.machine.off {
		return nil, errDead
	}
	switch network {
	case "unix":
		return h.connect(ctx, h.machine, func(to *Host) *listener { return to.unix[address] })
	case "tcp", "tcp4", "udp", "udp4":
	default:
		return nil, net.UnknownNetworkError(network)
	}
	m, port, err := h.resolve(address)
	switch {
	case err != nil:
		return nil, err
	case m == nil:
		return nil, os.NewSyscallError("connect", syscall.EHOSTUNREACH)
	case network == "tcp" || network == "tcp4":
		return h.connect(ctx, m, func(to *Host) *listener { return to.tcp[port] })
	}
	p, err := h.packetConn("udp", ":0")
	if err == nil {
		p.remote = &net.UDPAddr{IP: m.ip, Port: port}
	}
	return p, err
}

// connect shakes hands with a listener. Its caller holds the lock, which it
// gives up while it waits.
func (h *Host) connect(ctx context.Context, to *machine, listening func(*Host) *listener) (net.Conn, error) {
	there, back := h.n.way(h.machine, to), h.n.way(to, h.machine)
	wake := func() {
		h.n.mu.Lock()
		defer h.n.mu.Unlock()
		h.n.changed.Broadcast()
	}
	defer context.AfterFunc(ctx, wake)()
	now := time.Now()
	giveUp := now.Add(synLimit)
	timeout := time.AfterFunc(synLimit, wake)
	defer timeout.Stop()
	answered := now.Add(there.quality().Latency + back.quality().Latency)
	silent := false
	handshake := time.AfterFunc(answered.Sub(now), wake)
	defer handshake.Stop()
	for {
		now = time.Now()
		switch unheard := there.cut() || back.cut() || to.off; {
		case ctx.Err() != nil:
			return nil, canceled(ctx)
		case h.dead:
			return nil, errDead
		case due(giveUp, now):
			return nil, os.NewSyscallError("connect", syscall.ETIMEDOUT)
		case unheard:
			silent = true
		case silent: // it was, and now there will be an answer
			silent = false
			answered = now.Add(there.quality().Latency + back.quality().Latency)
			handshake.Reset(answered.Sub(now))
		case !due(answered, now):
		case there.refused || back.refused:
			return nil, os.NewSyscallError("connect", syscall.ECONNREFUSED)
		default:
			l := listening(to.host)
			if l == nil {
				return nil, os.NewSyscallError("connect", syscall.ECONNREFUSED)
			}
			return l.connect(h, there, back), nil
		}
		h.n.changed.Wait()
	}
}

// canceled is what package net says of a dial whose context ended.
func canceled(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return os.ErrDeadlineExceeded
	}
	return fmt.Errorf("operation was canceled: %w", ctx.Err())
}
