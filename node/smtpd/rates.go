package smtpd

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// rates bounds the messages a minute of each client. It remembers only clients
// that sent lately: one whose allowance is whole again is as good as new.
type rates struct {
	limit   rate.Limit // messages a second; 0: none is kept
	burst   int
	mu      sync.Mutex
	clients map[netip.Addr]*rate.Limiter
}

func newRates(perMinute float64) *rates {
	return &rates{
		limit:   rate.Limit(perMinute / 60),
		burst:   max(1, int(perMinute)),
		clients: map[netip.Addr]*rate.Limiter{},
	}
}

// allow counts a message of a client and reports whether it is within bounds.
func (r *rates) allow(client netip.Addr) bool {
	if r.limit == 0 || !client.IsValid() {
		return true
	}
	key := clientKey(client)
	r.mu.Lock()
	defer r.mu.Unlock()
	limiter := r.clients[key]
	if limiter == nil {
		if len(r.clients) >= maxClientsRemembered {
			r.forget()
		}
		limiter = rate.NewLimiter(r.limit, r.burst)
		r.clients[key] = limiter
	}
	return limiter.Allow()
}

// forget makes room: for clients that were quiet, and when all were busy, for
// any one of them.
func (r *rates) forget() {
	now := time.Now()
	var some netip.Addr
	for key, limiter := range r.clients {
		some = key
		if limiter.TokensAt(now) >= float64(r.burst) {
			delete(r.clients, key)
		}
	}
	if len(r.clients) >= maxClientsRemembered {
		delete(r.clients, some)
	}
}

// clientKey is what one client is counted by. An IPv6 host has a whole /64.
func clientKey(client netip.Addr) netip.Addr {
	if client.Is4() {
		return client
	}
	network, _ := client.WithZone("").Prefix(64) // fails for other lengths only
	return network.Addr()
}
