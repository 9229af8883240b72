package httpd

import (
	"io"
	"net/http"
	"sync"
	"time"

	"chainmail/archive/record"
)

// meter is the ResponseWriter that all handlers get: it notes what was
// answered, and cuts off a client that takes no byte for the stall time.
type meter struct {
	http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration
	code    int
	bytes   int64
}

func newMeter(w http.ResponseWriter, stall time.Duration) *meter {
	return &meter{ResponseWriter: w, control: http.NewResponseController(w), stall: stall}
}

// Unwrap is for http.ResponseController.
func (m *meter) Unwrap() http.ResponseWriter { return m.ResponseWriter }

func (m *meter) WriteHeader(code int) {
	if m.code == 0 {
		m.code = code
	}
	// A writer without deadlines is a test's recorder: nothing can stall it.
	_ = m.control.SetWriteDeadline(time.Now().Add(m.stall))
	m.ResponseWriter.WriteHeader(code)
}

func (m *meter) Write(p []byte) (int, error) {
	if m.code == 0 {
		m.WriteHeader(http.StatusOK)
	}
	_ = m.control.SetWriteDeadline(time.Now().Add(m.stall))
	n, err := m.ResponseWriter.Write(p)
	m.bytes += int64(n)
	return n, err
}

// upload reads a request's body, and cuts off a client that sends no byte for
// the stall time. At the end it lifts the deadline: net/http reads on to notice
// that the client goes away, and a deadline there would end the request.
type upload struct {
	body    io.Reader
	control *http.ResponseController
	stall   time.Duration
}

func (u upload) Read(p []byte) (int, error) {
	_ = u.control.SetReadDeadline(time.Now().Add(u.stall))
	n, err := u.body.Read(p)
	if err == io.EOF {
		_ = u.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// keyedLocks lets one import at a time pass for each message, so that two
// uploads of the same message cannot both find it absent.
type keyedLocks struct {
	mu   sync.Mutex
	held map[record.Hash]chan struct{}
}

// lock waits until nobody else holds h, and returns the function that gives it
// back.
func (k *keyedLocks) lock(h record.Hash) (unlock func()) {
	for {
		k.mu.Lock()
		other, taken := k.held[h]
		if !taken {
			break
		}
		k.mu.Unlock()
		<-other
	}
	defer k.mu.Unlock()
	if k.held == nil {
		k.held = make(map[record.Hash]chan struct{})
	}
	mine := make(chan struct{})
	k.held[h] = mine
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.held, h)
		close(mine)
	}
}
