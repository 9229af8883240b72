package route_test

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// wire makes a connection in memory that buffers like TCP: a writer waits for
// the reader only when much is under way.
func wire() (a, b net.Conn) {
	x, y := newStream(), newStream()
	return &end{in: x, out: y}, &end{in: y, out: x}
}

const wireBuffer = 64 << 10

// stream is one direction of a wire.
type stream struct {
	mu      sync.Mutex
	buf     []byte
	closed  bool          // by the writer: what is in buf can be read still
	broken  bool          // by the reader
	changed chan struct{} // closed at every change
}

func newStream() *stream { return &stream{changed: make(chan struct{})} }

// update calls f until it is satisfied, each time something changes.
func (s *stream) update(deadline time.Time, f func() (done bool)) error {
	var late <-chan time.Time
	if !deadline.IsZero() {
		timer := time.NewTimer(time.Until(deadline))
		defer timer.Stop()
		late = timer.C
	}
	for {
		s.mu.Lock()
		done := f()
		if done {
			close(s.changed)
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-late:
			return os.ErrDeadlineExceeded
		}
	}
}

// end is one end of a wire.
type end struct {
	in, out     *stream
	mu          sync.Mutex
	read, write time.Time
}

func (e *end) Read(p []byte) (n int, err error) {
	e.mu.Lock()
	deadline := e.read
	e.mu.Unlock()
	late := e.in.update(deadline, func() bool {
		switch {
		case e.in.broken:
			err = net.ErrClosed
		case len(e.in.buf) > 0:
			n = copy(p, e.in.buf)
			e.in.buf = e.in.buf[n:]
		case e.in.closed:
			err = io.EOF
		default:
			return false
		}
		return true
	})
	if late != nil {
		return 0, late
	}
	return n, err
}

func (e *end) Write(p []byte) (n int, err error) {
	e.mu.Lock()
	deadline := e.write
	e.mu.Unlock()
	for n < len(p) && err == nil {
		late := e.out.update(deadline, func() bool {
			room := wireBuffer - len(e.out.buf)
			switch {
			case e.out.closed, e.out.broken:
				err = io.ErrClosedPipe
			case room > 0:
				m := min(room, len(p)-n)
				e.out.buf = append(e.out.buf, p[n:n+m]...)
				n += m
			default:
				return false
			}
			return true
		})
		if late != nil {
			return n, late
		}
	}
	return n, err
}

func (e *end) Close() error {
	_ = e.out.update(time.Time{}, func() bool { e.out.closed = true; return true })
	_ = e.in.update(time.Time{}, func() bool { e.in.broken = true; return true })
	return nil
}

func (e *end) SetDeadline(t time.Time) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.read, e.write = t, t
	return nil
}

func (e *end) SetReadDeadline(t time.Time) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.read = t
	return nil
}

func (e *end) SetWriteDeadline(t time.Time) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.write = t
	return nil
}

func (e *end) LocalAddr() net.Addr  { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 40000} }
func (e *end) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 25} }
