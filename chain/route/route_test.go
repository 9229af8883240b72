package route_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"chainmail/archive/record"
	"chainmail/chain/route"
)

func TestOldestFirstByteForByte(t *testing.T) {
	for _, extensions := range [][]string{{"PIPELINING", "CHUNKING"}, {"PIPELINING"}, {"CHUNKING"}, {}} {
		t.Run(strings.Join(extensions, " "), func(t *testing.T) {
			inVirtualTime(t, func(b *bench) {
				b.extensions = extensions
				var bodies []string
				for i := range 250 {
					body := fmt.Sprintf("Subject: %d\r\n\r\n.\r\n..x\r\n", i)
					store := ownStore
					if i%3 == 0 {
						store = peerStore
					}
					b.put(record.Position{Store: store}, body, "a@example.com", "b@example.com", "c@example.com")
					bodies = append(bodies, body)
					time.Sleep(time.Millisecond)
				}
				b.start()
				b.idle()
				b.wantOnce(bodies...)
				for i, m := range b.received() {
					if m.body != bodies[i] || m.from != "a@example.com" || strings.Join(m.to, " ") != "b@example.com c@example.com" {
						t.Fatalf("mail %d is %+v, want %q", i, m, bodies[i])
					}
				}
				b.stop()
				if conns, quits := b.count(); conns != 3 || quits != 3 {
					t.Errorf("%d connections and %d QUITs, want 3 of both", conns, quits)
				}
				s := b.route.Status()
				if s.Sent != 250 || s.Backlog != 0 || s.Parked != 0 || s.Problem != "" || !s.Oldest.IsZero() {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

func TestNewMailGoesAtOnce(t *testing.T) {
	inVirtualTime(t, func(b *bench) {
		b.start()
		b.idle()
		for _, pause := range []time.Duration{0, time.Second, time.Hour} {
			time.Sleep(pause)
			before := len(b.received())
			b.add(fmt.Sprintf("after %v\r\n", pause))
			synctest.Wait()
			if n := len(b.received()); n != before+1 {
				t.Errorf("after %v: %d mails arrived at once", pause, n-before)
			}
			if s := b.route.Status(); s.State != route.StateIdle {
				t.Errorf("%+v", s)
			}
		}
		if conns, _ := b.count(); conns != 2 {
			t.Errorf("%d connections: an idle one shall be kept for some seconds, not for an hour", conns)
		}
	})
}

func TestReceiverIsDown(t *testing.T) {
	inVirtualTime(t, func(b *bench) {
		bodies := b.letters(20)
		up := time.Now().Add(36 * time.Hour)
		var last time.Time
		var gaps []time.Duration
		b.dial = func() error {
			b.mu2.Lock()
			defer b.mu2.Unlock()
			if now := time.Now(); now.Before(up) {
				if !last.IsZero() {
					gaps = append(gaps, now.Sub(last))
				}
				last = now
				return errDown
			}
			return nil
		}
		b.change = func(o *route.Options) { o.Concurrency = 4 }
		b.start()
		time.Sleep(time.Hour)
		s := b.route.Status()
		if s.State != route.StateRetrying || !strings.Contains(s.Problem, "connection refused") || s.Next.IsZero() || s.Backlog != 20 || s.Oldest.IsZero() {
			t.Errorf("%+v", s)
		}
		for time.Now().Before(up.Add(-time.Hour)) {
			bodies = append(bodies, b.letters(1)...)
			time.Sleep(time.Hour)
		}
		b.idle()
		b.wantOnce(bodies...)
		if took := time.Since(up); took > 6*time.Minute {
			t.Errorf("all arrived %v after the receiver was up", took)
		}
		for i, gap := range gaps[8:] { // after the first failures, which come together
			if gap > 5*time.Minute || i > 8 && gap < 3*time.Minute {
				t.Errorf("%v between two attempts", gap)
			}
		}
		if s := b.route.Status(); s.State != route.StateIdle || s.Problem != "" {
			t.Errorf("%+v", s)
		}
	})
}

func TestGreylisting(t *testing.T) {
	inVirtualTime(t, func(b *bench) {
		began := time.Now()
		b.put(record.Position{Store: ownStore}, "grey\r\n", "new@example.com", "b@example.com")
		bodies := b.letters(10)
		b.say = func(s *session, step, _ string) string {
			if step == "RCPT" && s.from == "new@example.com" && time.Since(began) < 5*time.Minute {
				return "450 4.7.1 greylisted,\x1b[31m come back in 300 s"
			}
			return ""
		}
		b.start()
		synctest.Wait()
		b.wantOnce(bodies...) // nobody waited
		s := b.route.Status()
		if s.State != route.StateRetrying || s.Deferred != 1 || s.Backlog != 1 ||
			!strings.Contains(s.Problem, "450 4.7.1 greylisted,?[31m come back") {
			t.Errorf("%+v", s)
		}
		b.idle()
		b.wantOnce(append(bodies, "grey\r\n")...)
		if took := time.Since(began); took > 11*time.Minute {
			t.Errorf("arrived after %v", took)
		}
	})
}

func TestRefusedForGood(t *testing.T) {
	for _, step := range []string{"MAIL", "RCPT", "DATA", "END"} {
		t.Run(step, func(t *testing.T) {
			inVirtualTime(t, func(b *bench) {
				if step == "DATA" {
					b.extensions = nil
				}
				refusing := true
				b.say = func(s *session, at, line string) string {
					if at == step && refusing && (s.from == "evil@example.com" || strings.Contains(line, "evil@example.com")) {
						return "550-5.7.1 not\r\n550 5.7.1 this one"
					}
					return ""
				}
				bodies := b.letters(3)
				p := b.put(record.Position{Store: ownStore}, "evil\r\n", "evil@example.com", "b@example.com")
				bodies = append(bodies, b.letters(3)...)
				b.start()
				b.idle()
				b.wantOnce(bodies...)
				parked := b.route.Parked(record.Position{}, 0)
				if len(parked) != 1 || parked[0].Position != p || parked[0].Reply != "550 5.7.1 not 5.7.1 this one" ||
					parked[0].Attempts != 1 || parked[0].Size != 6 || parked[0].Recipients != nil || parked[0].At.IsZero() {
					t.Fatalf("%+v", parked)
				}
				if s := b.route.Status(); s.Parked != 1 || s.State != route.StateIdle {
					t.Errorf("%+v", s)
				}
				if conns, _ := b.count(); conns != 1 {
					t.Errorf("%d connections: a refused mail is no reason for another", conns)
				}

				// It stays parked over a restart, and when it is refused again.
				b.stop()
				b.start()
				b.retry(1)
				if parked = b.route.Parked(record.Position{}, 0); len(parked) != 1 || parked[0].Attempts != 2 {
					t.Fatalf("%+v", parked)
				}
				refusing = false
				b.retry(1, p)
				if n := b.receiver.bodies()["evil\r\n"]; n != 1 {
					t.Errorf("arrived %d times", n)
				}
				if parked = b.route.Parked(record.Position{}, 0); len(parked) != 0 {
					t.Errorf("%+v", parked)
				}
				if _, err := b.route.Retry(p); err == nil {
					t.Error("a mail that is not parked was retried")
				}
			})
		})
	}
}

// retry retries and waits for the end of it.
func (b *bench) retry(want int, positions ...record.Position) {
	b.t.Helper()
	n, err := b.route.Retry(positions...)
	if n != want || err != nil {
		b.t.Fatalf("Retry: %d, %v, want %d", n, err, want)
	}
	b.idle()
}

func TestSomeRecipientsAreRefused(t *testing.T) {
	inVirtualTime(t, func(b *bench) {
		b.put(record.Position{Store: ownStore}, "x\r\n", "a@example.com", "good@x", "bad@x", "later@x", "worse@x")
		tries := 0
		refusing := true
		b.say = func(_ *session, step, line string) string {
			switch {
			case step != "RCPT" || !refusing:
			case strings.Contains(line, "bad@x"):
				return "550 5.1.1 who is bad?"
			case strings.Contains(line, "worse@x"):
				return "553 5.1.1 who is worse?"
			case strings.Contains(line, "later@x"):
				if tries++; tries <= 2 {
					return "452 4.2.2 mailbox full"
				}
			}
			return ""
		}
		b.start()
		b.idle()
		mails := b.received()
		if len(mails) != 2 || strings.Join(mails[0].to, " ") != "good@x" || strings.Join(mails[1].to, " ") != "later@x" {
			t.Fatalf("%+v", mails)
		}
		parked := b.route.Parked(record.Position{}, 0)
		if len(parked) != 1 || strings.Join(parked[0].Recipients, " ") != "bad@x worse@x" || parked[0].Reply != "550 5.1.1 who is bad?" {
			t.Fatalf("%+v", parked)
		}
		refusing = false
		b.stop()
		b.start()
		b.retry(1)
		if mails = b.received(); len(mails) != 3 || strings.Join(mails[2].to, " ") != "bad@x worse@x" {
			t.Fatalf("%+v", mails)
		}
	})
}

// A server that takes only so many recipients at once gets the rest at once.
func TestTooManyRecipients(t *testing.T) {
	for _, tooMany := range []string{"452 4.5.3 too many recipients", "552 too many recipients"} {
		for _, extensions := range [][]string{{"PIPELINING"}, {}} {
			inVirtualTime(t, func(b *bench) {
				b.extensions = extensions
				var to []string
				for i := range 1000 {
					to = append(to, fmt.Sprintf("user%d@example.com", i))
				}
				b.put(record.Position{Store: ownStore}, "x\r\n", "", to...)
				b.say = func(s *session, step, _ string) string {
					if step == "RCPT" && len(s.to) == 300 {
						return tooMany
					}
					return ""
				}
				began := time.Now()
				b.start()
				b.idle()
				var got []string
				for _, m := range b.received() {
					got = append(got, m.to...)
				}
				if !slices.Equal(got, to) {
					t.Errorf("%d recipients got it", len(got))
				}
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("took %v", took)
				}
			})
		}
	}
}

// Wherever the connection breaks, every mail arrives, and others do not wait
// for the one that breaks it.
func TestBrokenConnections(t *testing.T) {
	for _, how := range []string{drop, silence, "421 4.3.2 shutting down", "this is no reply", "250-x\r\n550 two codes"} {
		for _, step := range []string{"CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "BODY", "END", "RSET", "QUIT"} {
			for _, extensions := range [][]string{{"PIPELINING", "CHUNKING"}, {}} {
				t.Run(fmt.Sprintf("%.10s at %s %s", how, step, extensions), func(t *testing.T) {
					inVirtualTime(t, func(b *bench) {
						b.extensions = extensions
						bodies := b.letters(30)
						n := 0
						b.say = func(_ *session, at, _ string) string {
							if step == "RSET" && at == "RCPT" && n%7 == 0 { // so that there is one
								n++
								return "450 later"
							}
							if at != step {
								return ""
							}
							if n++; n%7 == 3 {
								return how
							}
							return ""
						}
						b.start()
						b.idle()
						b.want(3, bodies...)
						if s := b.route.Status(); s.Parked != 0 || s.Problem != "" {
							t.Errorf("%+v", s)
						}
						if step == "MAIL" || step == "RCPT" || step == "CONNECT" {
							b.wantOnce(bodies...)
						}
					})
				})
			}
		}
	}
}

// A mail that always breaks the connection holds up nobody else.
func TestPoisonedMail(t *testing.T) {
	for _, retries := range []int{0, 4} {
		inVirtualTime(t, func(b *bench) {
			b.change = func(o *route.Options) { o.MaxRetries = retries }
			poison := b.put(record.Position{Store: ownStore}, strings.Repeat("poison ", 10), "evil@example.com", "b@x")
			bodies := b.letters(50)
			b.say = func(s *session, step, _ string) string {
				if step == "BODY" && s.from == "evil@example.com" {
					return drop
				}
				return ""
			}
			began := time.Now()
			b.start()
			for len(b.received()) < 50 && time.Since(began) < time.Hour {
				time.Sleep(time.Second)
				synctest.Wait()
			}
			b.wantOnce(bodies...)
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("the others arrived after %v", took)
			}
			time.Sleep(time.Hour)
			parked := b.route.Parked(record.Position{}, 0)
			switch s := b.route.Status(); {
			case retries == 0 && (len(parked) != 0 || s.State != route.StateRetrying || s.Problem == "" || s.Backlog != 1):
				t.Errorf("%+v %+v", s, parked)
			case retries > 0 && (len(parked) != 1 || parked[0].Position != poison || parked[0].Attempts != 5 ||
				!strings.HasPrefix(parked[0].Reply, "given up after 5 attempts, the last: ")):
				t.Errorf("%+v %+v", s, parked)
			}
		})
	}
}

// While the server is away, only one mail at a time finds out.
func TestTroubleIsTriedWithOneMail(t *testing.T) {
	inVirtualTime(t, func(b *bench) {
		bodies := b.letters(100)
		b.change = func(o *route.Options) { o.Concurrency = 16 }
		dials := 0
		b.dial = func() error {
			time.Sleep(10 * time.Second)
			b.mu2.Lock()
			defer b.mu2.Unlock()
			if dials++; dials < 40 {
				return errDown
			}
			return nil
		}
		b.start()
		time.Sleep(29 * time.Second) // 16 at first, then one that takes 10 s
		b.mu2.Lock()
		if dials > 18 {
			t.Errorf("%d attempts in 29 s", dials)
		}
		b.mu2.Unlock()
		var up time.Time
		b.say = func(_ *session, step, _ string) string {
			if step == "END" {
				b.mu2.Lock()
				if up.IsZero() {
					up = time.Now()
				}
				b.mu2.Unlock()
				time.Sleep(time.Minute)
			}
			return ""
		}
		b.idle()
		b.wantOnce(bodies...)
		if took := time.Since(up); took > 10*time.Minute { // 1 mail, then 16 at a time
			t.Errorf("took %v once the server was up: not with all connections", took)
		}
	})
}

// numbered is a body of n different lines.
func numbered(n int) string {
	var body strings.Builder
	for i := range n {
		fmt.Fprintf(&body, "%08d\r\n", i)
	}
	return body.String()
}

func TestLargeMail(t *testing.T) {
	for _, extensions := range [][]string{nil, {"CHUNKING"}} {
		inVirtualTime(t, func(b *bench) {
			b.extensions = extensions
			body := numbered(150_000)
			b.add(body)
			b.start()
			b.idle()
			b.wantOnce(body)
		})
	}
}

// A slow server is no broken one; a silent one is, by the limits of RFC 5321.
func TestSlowReceiver(t *testing.T) {
	inVirtualTime(t, func(b *bench) {
		b.extensions = nil
		large := strings.Repeat("0123456789abcde\r\n", 20_000)
		b.add(large)
		bodies := append(b.letters(5), large)
		b.say = func(_ *session, step, _ string) string {
			switch step {
			case "QUIT":
			case "DATA":
				time.Sleep(119 * time.Second)
			case "END":
				time.Sleep(7 * time.Minute)
			case "BODY":
				time.Sleep(2*time.Minute + 59*time.Second)
			default:
				time.Sleep(4*time.Minute + 59*time.Second)
			}
			return ""
		}
		b.start()
		b.idle()
		b.wantOnce(bodies...)
	})
}

func TestRestart(t *testing.T) {
	inVirtualTime(t, func(b *bench) {
		bodies := b.letters(150)
		b.start()
		b.idle()
		b.stop()
		bodies = append(bodies, "more\r\n")
		b.add("more\r\n")
		b.start()
		b.idle()
		b.wantOnce(bodies...)
	})
}

// A crash loses what was not noted yet: that is sent again, and no mail is
// left out.
func TestCrashWithStaleCursor(t *testing.T) {
	inVirtualTime(t, func(b *bench) {
		refused := b.put(record.Position{Store: ownStore}, "evil\r\n", "evil@example.com", "b@x")
		b.say = func(s *session, step, _ string) string {
			if step == "RCPT" && s.from == "evil@example.com" {
				return "550 no"
			}
			return ""
		}
		bodies := b.letters(130)
		b.start()
		b.idle()
		time.Sleep(2 * time.Second)
		file := filepath.Join(b.dir, "second.json")
		noted, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 70 {
			body := fmt.Sprintf("late %d\r\n", i)
			b.add(body)
			bodies = append(bodies, body)
		}
		b.idle()
		b.stop()
		b.wantOnce(bodies...)
		if err := os.WriteFile(file, noted, 0o600); err != nil { // as if nothing was noted since
			t.Fatal(err)
		}
		before := len(b.received())
		b.start()
		b.idle()
		b.want(2, bodies...)
		if again := len(b.received()) - before; again != 70 {
			t.Errorf("%d mails were sent again, want the 70 that were not noted", again)
		}
		if parked := b.route.Parked(record.Position{}, 0); len(parked) != 1 || parked[0].Position != refused {
			t.Errorf("%+v", parked)
		}
	})
}

// The cursor is noted soon: after a second, and after 100 mails.
func TestCursorIsNotedSoon(t *testing.T) {
	inVirtualTime(t, func(b *bench) {
		file := filepath.Join(b.dir, "second.json")
		noted := func() string {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			return string(text)
		}
		b.start()
		b.letters(1)
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		if !strings.Contains(noted(), `"settled": "1"`) {
			t.Errorf("after a second: %s", noted())
		}
		for range 100 {
			b.add("x\r\n")
		}
		synctest.Wait()
		if !strings.Contains(noted(), `"settled": "1-1`) && !strings.Contains(noted(), `"settled": "1-9`) {
			t.Errorf("after 100 mails: %s", noted())
		}
		if left, _ := filepath.Glob(filepath.Join(b.dir, "*.tmp")); left != nil {
			t.Errorf("left behind: %v", left)
		}
	})
}

func TestMailStopsWithTheRoute(t *testing.T) {
	inVirtualTime(t, func(b *bench) {
		bodies := b.letters(3)
		b.say = func(_ *session, step, _ string) string {
			if step == "END" {
				time.Sleep(4 * time.Second)
			}
			return ""
		}
		b.start()
		synctest.Wait()
		began := time.Now()
		b.stop() // the mail on its way gets its reply
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("stopped after %v", took)
		}
		b.say = func(_ *session, step, _ string) string {
			if step == "END" {
				return silence
			}
			return ""
		}
		b.start()
		synctest.Wait()
		began = time.Now()
		b.stop() // and has not for ever
		if took := time.Since(began); took > 6*time.Second {
			t.Errorf("stopped after %v", took)
		}
		b.say = nil
		b.start()
		b.idle()
		b.want(2, bodies...)
		if n := b.receiver.bodies()[bodies[0]]; n != 1 {
			t.Errorf("the mail that had got its reply arrived %d times", n)
		}
	})
}

// Stopping a route is no failure of a mail.
func TestStopIsNoFailure(t *testing.T) {
	inVirtualTime(t, func(b *bench) {
		b.change = func(o *route.Options) { o.MaxRetries = 1 }
		b.add("x\r\n")
		tries := 0
		b.say = func(_ *session, step, _ string) string {
			if step != "END" {
				return ""
			}
			if tries++; tries == 1 {
				return "451 later"
			}
			return silence
		}
		b.start()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		b.stop()
		if parked := b.route.Parked(record.Position{}, 0); len(parked) != 0 || tries != 2 {
			t.Errorf("after %d attempts: %+v", tries, parked)
		}
	})
}

func TestFrom(t *testing.T) {
	for _, tt := range []struct {
		from route.From
		own  bool
		want string
	}{
		{route.FromNow, false, "own new, peer new, old log new, other new"},
		{route.FromBeginning, false, "own old, peer old, own new, peer new, own old log, old log new, other old, other new"},
		{route.FromNow, true, "own new, old log new"},
		{route.FromBeginning, true, "own old, own new, own old log, old log new"},
	} {
		t.Run(fmt.Sprintf("%s own %v", tt.from, tt.own), func(t *testing.T) {
			inVirtualTime(t, func(b *bench) {
				b.change = func(o *route.Options) { o.From, o.Own = tt.from, tt.own }
				at := func(store record.StoreID) record.Position { return record.Position{Store: store} }
				b.put(at(ownStore), "own old", "", "x@x")
				b.put(at(peerStore), "peer old", "", "x@x")
				b.put(at(0xc), "own old log", "", "x@x")
				b.logs[0xc].Origin = "a"
				time.Sleep(48 * time.Hour)
				b.start()
				b.idle()
				b.put(at(ownStore), "own new", "", "x@x")
				b.put(at(peerStore), "peer new", "", "x@x")
				b.put(at(0xc), "old log new", "", "x@x")
				// A log that comes to be held later, with its history.
				p := b.put(at(0xd), "other old", "", "x@x")
				b.source.mu.Lock()
				old := b.receipts[p]
				old.ReceivedAt = old.ReceivedAt.Add(-72 * time.Hour)
				b.receipts[p] = old
				b.source.mu.Unlock()
				b.put(at(0xd), "other new", "", "x@x")
				// What the node accepts now is new, whatever its clock says.
				p = b.put(at(ownStore), "own by a wrong clock", "", "x@x")
				b.source.mu.Lock()
				old = b.receipts[p]
				old.ReceivedAt = old.ReceivedAt.Add(-72 * time.Hour)
				b.receipts[p] = old
				b.source.mu.Unlock()
				b.idle()
				want := append(strings.Split(tt.want, ", "), "own by a wrong clock")
				slices.Sort(want)
				var got []string
				for _, m := range b.received() {
					got = append(got, m.body)
				}
				slices.Sort(got)
				if !slices.Equal(got, want) {
					t.Errorf("sent %q, want %q", got, want)
				}
			})
		})
	}
}

// What was accepted while the route was stopped is not history.
func TestFromNowIsTheFirstStart(t *testing.T) {
	inVirtualTime(t, func(b *bench) {
		b.change = func(o *route.Options) { o.From = route.FromNow }
		b.letters(3)
		b.start()
		b.idle()
		b.stop()
		b.add("while it was stopped\r\n")
		time.Sleep(72 * time.Hour)
		b.start()
		b.idle()
		b.wantOnce("while it was stopped\r\n")
	})
}

// A receipt that comes to be held behind others is sent too.
func TestGapsAreFilled(t *testing.T) {
	inVirtualTime(t, func(b *bench) {
		at := func(s record.Seq) record.Position { return record.Position{Store: peerStore, Seq: s} }
		b.put(at(5), "five", "", "x@x")
		b.start()
		b.idle()
		b.put(at(7), "seven", "", "x@x")
		b.put(at(2), "two", "", "x@x")
		b.idle()
		b.stop()
		b.start()
		b.put(at(3), "three", "", "x@x")
		b.idle()
		b.wantOnce("five", "seven", "two", "three")
	})
}

// What the node itself cannot read is no fault of the server: it is neither
// parked nor left out, and others go on.
func TestUnreadableMail(t *testing.T) {
	for _, what := range []string{"receipt", "body at once", "body in the middle", "large body in the middle"} {
		t.Run(what, func(t *testing.T) {
			inVirtualTime(t, func(b *bench) {
				body := "rotten\r\n"
				if strings.HasPrefix(what, "large") {
					body = numbered(150_000)
				}
				p := b.add(body)
				hash := b.receipts[p].Hash
				rotten, opened := true, 0
				b.fail = func(at record.Position) error {
					if rotten && what == "receipt" && at == p {
						return errRot
					}
					return nil
				}
				b.cut = func(h record.Hash) (int, error) {
					switch opened++; {
					case !rotten || h != hash || what == "receipt":
					case what == "body at once":
						return 0, errRot
					case what == "body in the middle":
						return 3, errRot
					case opened > 1: // it was well when it was inspected
						return 900_000, errRot
					}
					return 0, nil
				}
				b.change = func(o *route.Options) { o.MaxRetries = 2 }
				bodies := b.letters(20)
				b.start()
				time.Sleep(time.Hour)
				b.wantOnce(bodies...)
				s := b.route.Status()
				if s.Unreadable != 1 || s.Deferred != 1 || s.Parked != 0 || s.Backlog != 1 || !strings.Contains(s.Problem, "not readable here: rot") {
					t.Errorf("%+v", s)
				}
				b.source.mu.Lock()
				rotten = false // repaired from another node
				b.source.mu.Unlock()
				b.idle()
				b.wantOnce(append(bodies, body)...)
			})
		})
	}
}

// A retry that was asked for is not forgotten in a crash, nor for whom it is.
func TestCrashAfterRetry(t *testing.T) {
	inVirtualTime(t, func(b *bench) {
		b.put(record.Position{Store: ownStore}, "x\r\n", "a@x", "good@x", "bad@x")
		b.say = func(_ *session, step, line string) string {
			if step == "RCPT" && strings.Contains(line, "bad@x") {
				return "550 no"
			}
			return ""
		}
		b.start()
		b.idle()
		b.dial = func() error { return errDown }
		time.Sleep(time.Minute)
		file := filepath.Join(b.dir, "second.json")
		if n, err := b.route.Retry(); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		noted, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if s := b.route.Status(); s.Parked != 0 || s.Backlog != 1 || s.State != route.StateRetrying {
			t.Errorf("%+v", s)
		}
		b.stop()
		if err := os.WriteFile(file, noted, 0o600); err != nil {
			t.Fatal(err)
		}
		b.dial, b.say = nil, nil
		b.start()
		b.idle()
		if m := b.received(); len(m) != 2 || strings.Join(m[1].to, " ") != "bad@x" {
			t.Errorf("%+v", m)
		}
		b.stop()
		b.start() // and it is not sent a third time
		b.idle()
		if m := b.received(); len(m) != 2 {
			t.Errorf("%+v", m)
		}
	})
}

func TestMaxRetriesWhenDown(t *testing.T) {
	inVirtualTime(t, func(b *bench) {
		b.change = func(o *route.Options) { o.MaxRetries = 3 }
		b.dial = func() error { return errDown }
		p := b.add("x\r\n")
		b.start()
		b.idle()
		parked := b.route.Parked(record.Position{}, 0)
		if len(parked) != 1 || parked[0].Position != p || parked[0].Reply != "given up after 4 attempts, the last: connection refused" {
			t.Errorf("%+v", parked)
		}
		b.dial = nil
		b.retry(1)
		b.wantOnce("x\r\n")
	})
}

// Mail that is deferred is bounded: beyond, no new mail is begun, and none is
// lost.
func TestManyDeferred(t *testing.T) {
	inVirtualTime(t, func(b *bench) {
		var bodies []string
		for i := range 1200 {
			body := fmt.Sprintf("%d\r\n", i)
			b.add(body)
			bodies = append(bodies, body)
		}
		full := true
		b.say = func(_ *session, step, _ string) string {
			if step == "MAIL" && full {
				return "452 4.3.1 disk full"
			}
			return ""
		}
		b.start()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if s := b.route.Status(); s.Deferred < 990 || s.Deferred > 1001 || s.Backlog != 1200 || !strings.Contains(s.Problem, "452 4.3.1 disk full") {
			t.Errorf("%+v", s)
		}
		full = false
		b.idle()
		b.wantOnce(bodies...)
	})
}

// A server that refuses everything stops the route before all mail is parked.
func TestManyParked(t *testing.T) {
	inVirtualTime(t, func(b *bench) {
		refusing := true
		b.say = func(_ *session, step, _ string) string {
			if step == "RCPT" && refusing {
				return "554 5.7.1 go away"
			}
			return ""
		}
		for range 10_020 {
			b.add("x\r\n")
		}
		b.start()
		time.Sleep(time.Minute)
		synctest.Wait()
		s := b.route.Status()
		if s.State != route.StateStopped || s.Parked < 10_000 || s.Parked > 10_010 || s.Backlog == 0 || !strings.Contains(s.Problem, "parked") {
			t.Fatalf("%+v", s)
		}
		if some := b.route.Parked(record.Position{Store: ownStore, Seq: 17}, 3); len(some) != 3 || some[0].Position.Seq != 18 {
			t.Errorf("%+v", some)
		}
		refusing = false
		b.retry(s.Parked)
		if n := b.receiver.bodies()["x\r\n"]; n != 10_020 {
			t.Errorf("%d mails arrived", n)
		}
	})
}

// Whatever the server does wrong at whatever moment, and wherever the route is
// restarted, in the end everything has arrived.
func TestChaos(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inVirtualTime(t, func(b *bench) {
				random := rand.New(rand.NewPCG(seed, 1))
				b.extensions = [][]string{{"PIPELINING", "CHUNKING", "8BITMIME"}, {"PIPELINING"}, {}}[seed%3]
				b.change = func(o *route.Options) { o.Concurrency = 1 + int(seed%4) }
				calm := false
				b.say = func(_ *session, step, _ string) string {
					b.mu2.Lock()
					defer b.mu2.Unlock()
					n := random.IntN(100)
					switch {
					case calm:
					case n < 2:
						return drop
					case n < 3:
						return silence
					case n < 4:
						return "421 4.3.0 not now"
					case n < 5:
						return "\x00garbage\xff"
					case n < 8 && step != "BODY" && step != "BDAT":
						return "451-4.3.0 not\r\n451 4.3.0 now"
					case n < 10 && (step == "MAIL" || step == "RCPT" || step == "END"):
						return "550 5.0.0 never"
					}
					return ""
				}
				b.dial = func() error {
					b.mu2.Lock()
					defer b.mu2.Unlock()
					if !calm && random.IntN(5) == 0 {
						return errDown
					}
					return nil
				}
				var bodies []string
				for i := range 200 {
					body := fmt.Sprintf("%d\r\n.%s", i, strings.Repeat("x\r\n.\r\n", i%50))
					p := record.Position{Store: []record.StoreID{ownStore, peerStore}[i%2]}
					b.put(p, body+"\r\n", "a@x", []string{"b@x", "c@x"}[:1+i%2]...)
					bodies = append(bodies, body+"\r\n")
				}
				for range 6 {
					b.mu2.Lock()
					pause := time.Duration(random.IntN(20)) * time.Minute
					b.mu2.Unlock()
					b.start()
					time.Sleep(pause)
					b.stop()
				}
				b.mu2.Lock()
				calm = true
				b.mu2.Unlock()
				b.start()
				b.idle()
				for _, p := range b.route.Parked(record.Position{}, 0) {
					if !strings.Contains(p.Reply, "550 5.0.0 never") {
						t.Errorf("parked: %+v", p)
					}
				}
				if s := b.route.Status(); s.Parked > 0 {
					b.retry(s.Parked)
				}
				b.want(1000, bodies...)
				missing := map[string]int{}
				for i, body := range bodies {
					missing[body] = 1 + i%2
				}
				for _, to := range []string{"b@x", "c@x"} {
					got := map[string]bool{}
					for _, m := range b.received() {
						if slices.Contains(m.to, to) && !got[m.body] {
							got[m.body] = true
							missing[m.body]--
						}
					}
				}
				for body, n := range missing {
					if n != 0 {
						t.Errorf("%.20q: %d recipients did not get it", body, n)
					}
				}
			})
		})
	}
}

func TestOptionsThatAreRefused(t *testing.T) {
	dir := t.TempDir()
	noPEM := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(noPEM, []byte("no"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "rotten.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "newer.json"), []byte(`{"version": 2}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		change func(*route.Options)
		want   string
	}{
		{func(o *route.Options) { o.Name = "../x" }, `route "../x": name "../x": use up to 63 lower-case letters, digits, dots and dashes`},
		{func(o *route.Options) { o.Target = "host" }, `route "x": target "host": write host:port, for example archive.example.com:25`},
		{func(o *route.Options) { o.TLS = "yes" }, `route "x": tls is "yes": use one of ["starttls" "required" "implicit" "none"]`},
		{func(o *route.Options) { o.From = "then" }, `route "x": from is "then": use one of ["now" "beginning"]`},
		{func(o *route.Options) { o.MaxRetries = -1 }, `route "x": max_retries is -1: use 0 for ever, or a positive number`},
		{func(o *route.Options) { o.Concurrency = -1 }, `route "x": concurrency is -1: use 0 for the default, or a positive number`},
		{func(o *route.Options) { o.TLS, o.User = route.TLSNone, "u" }, `route "x": there is a user but tls is "none": a password goes under TLS only: set tls to "required"`},
		{func(o *route.Options) { o.Password = "p" }, `route "x": there is a password but no user`},
		{func(o *route.Options) { o.Sender = "a\r\nb" }, `route "x": sender "a\r\nb" has a control character`},
		{func(o *route.Options) { o.Recipient = "a\nb" }, `route "x": recipient "a\nb" has a control character`},
		{func(o *route.Options) { o.CAFile = noPEM }, `route "x": CA file DIR/ca.pem holds no certificate in PEM`},
		{func(o *route.Options) { o.CAFile = filepath.Join(dir, "none") }, `route "x": CA file: open DIR/none: no such file or directory`},
		{func(o *route.Options) { o.Name = "rotten" }, `route "rotten": its cursor: DIR/rotten.json is damaged: unexpected end of JSON input: put back a copy, or remove it to begin anew as "from" says`},
		{func(o *route.Options) { o.Name = "newer" }, `route "newer": its cursor: DIR/newer.json has version 2, this chainmail knows 1: use the chainmail that wrote it, or a newer one`},
		{func(o *route.Options) { o.Source = nil }, `route "x": route: Options.Source or Options.Dir is missing`},
	} {
		o := route.Options{Name: "x", Target: "archive.example.com:25", Dir: dir, Source: newSource()}
		tt.change(&o)
		_, err := route.New(o)
		if err == nil {
			t.Errorf("accepted, want %s", tt.want)
		} else if got := strings.ReplaceAll(err.Error(), dir, "DIR"); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
}

// A cursor that cannot be written stops no mail; the end says so.
func TestCursorCannotBeWritten(t *testing.T) {
	inVirtualTime(t, func(b *bench) {
		b.dir = filepath.Join(b.dir, "routes")
		b.start()
		if err := os.RemoveAll(b.dir); err != nil {
			t.Fatal(err)
		}
		bodies := b.letters(200)
		b.idle()
		b.wantOnce(bodies...)
		if err := os.Mkdir(b.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		b.stop()
		b.start()
		b.idle()
		b.wantOnce(bodies...)
	})
}
