package netsim

import "time"

// window is how many bytes may be on their way or unread in one direction.
const window = 256 << 10

// stream is one direction of a connection.
type stream struct {
	way, back *way // there, and the acknowledgements
	from, to  *conn
	queue     []segment
	unread    int // bytes in the queue
	unacked   int // bytes that from has sent and was not told of; at least unread
}

// segment is a piece of a stream on its way, or there.
type segment struct {
	data []byte
	fin  bool // the end of the stream
	at   time.Time
}

// send puts bytes on their way; it takes data over.
func (s *stream) send(data []byte, fin bool, now time.Time) {
	at, ok := s.way.arrival(len(data), now)
	if !ok {
		at = at.Add(retransmission)
	}
	if k := len(s.queue); k > 0 && s.queue[k-1].at.After(at) {
		at = s.queue[k-1].at // in order
	}
	s.queue = append(s.queue, segment{data, fin, at})
	s.unread += len(data)
	s.unacked += len(data)
	s.to.reading.wake()
}

// arrived reports whether the head of the queue can be read, and when it can
// be if nothing changes: zero for never.
func (s *stream) arrived(now time.Time) (ok bool, when time.Time) {
	if len(s.queue) == 0 {
		return false, time.Time{}
	}
	at := s.queue[0].at
	if s.way.cut() && at.After(s.way.cutAt) {
		return false, time.Time{}
	}
	return due(at, now), at
}

// receive takes what has arrived, as far as it fits.
func (s *stream) receive(b []byte, now time.Time) (n int) {
	for n < len(b) {
		if ok, _ := s.arrived(now); !ok || s.queue[0].fin {
			break
		}
		head := &s.queue[0]
		k := copy(b[n:], head.data)
		n += k
		if head.data = head.data[k:]; len(head.data) == 0 {
			s.queue[0] = segment{}
			s.queue = s.queue[1:]
		}
	}
	s.unread -= n
	s.acknowledge()
	return n
}

// acknowledge tells the sender what was read, if it can hear that.
func (s *stream) acknowledge() {
	if !s.back.cut() && s.unacked != s.unread {
		s.unacked = s.unread
		s.from.writing.wake()
	}
}

// drop forgets what nobody will read.
func (s *stream) drop() { s.queue, s.unread = nil, 0 }

// lose forgets what has not arrived: the machine that would send it again is
// no more.
func (s *stream) lose() {
	now := time.Now()
	for i, g := range s.queue {
		if !due(g.at, now) || s.way.cut() && g.at.After(s.way.cutAt) {
			for _, lost := range s.queue[i:] {
				s.unread -= len(lost.data)
			}
			s.queue = s.queue[:i]
			return
		}
	}
}

// last is when all that is on its way will have arrived.
func (s *stream) last(now time.Time) time.Time {
	at := now.Add(s.way.quality().Latency)
	if k := len(s.queue); k > 0 && s.queue[k-1].at.After(at) {
		at = s.queue[k-1].at
	}
	return at
}

// resend puts what was lost in a cut on its way again.
func (s *stream) resend(since, now time.Time) {
	again := now.Add(retransmission + s.way.quality().Latency)
	for i := range s.queue {
		if at := s.queue[i].at; at.After(since) && at.Before(again) {
			s.queue[i].at = again
		}
	}
	s.to.reading.wake()
}
