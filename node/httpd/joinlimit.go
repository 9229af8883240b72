package httpd

import (
	"net"
	"net/http"
	"sync"

	"golang.org/x/time/rate"
)

const (
	joinBurst = 20 // attempts to join from one address at once
	joinRate  = 1  // further ones a second
	// maxJoiners bounds the addresses that are remembered.
	maxJoiners = 10_000
)

// joinLimit bounds the attempts to join of each address: whoever reaches the
// port may try, and each try costs the node work.
type joinLimit struct {
	mu      sync.Mutex
	clients map[string]*rate.Limiter
}

func (j *joinLimit) allow(r *http.Request) error {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.clients == nil || len(j.clients) >= maxJoiners {
		j.clients = map[string]*rate.Limiter{} // everybody gets a new chance; rare, and bounded all the same
	}
	limiter := j.clients[host]
	if limiter == nil {
		limiter = rate.NewLimiter(joinRate, joinBurst)
		j.clients[host] = limiter
	}
	if !limiter.Allow() {
		return &StatusError{http.StatusTooManyRequests, "too many attempts to join from " + host, "repeat in some seconds"}
	}
	return nil
}
