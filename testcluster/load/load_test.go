package load

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// modes are the ways to send a mail.
var modes = []Options{{}, {BDAT: true}, {LMTP: true, Recipients: 3}, {LMTP: true, BDAT: true, Recipients: 3}, {Recipients: 50}}

func name(o Options) string {
	return fmt.Sprintf("bdat=%v lmtp=%v rcpts=%d", o.BDAT, o.LMTP, max(o.Recipients, 1))
}

func mustRun(t *testing.T, opt Options) Report {
	t.Helper()
	opt.Timeout = testTimeout(t)
	report, err := Run(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestEveryByteArrives(t *testing.T) {
	for _, opt := range modes {
		for _, size := range []int{1, 600, 4 << 10, 300 << 10} {
			t.Run(fmt.Sprintf("%s size=%d", name(opt), size), func(t *testing.T) {
				s := newSink(t, func(s *sink) { s.lmtp = opt.LMTP })
				var acked bytes.Buffer
				opt.Target, opt.Acked, opt.Size, opt.Seed, opt.Count, opt.Sessions = s.addr(), &acked, size, 9, 40, 4
				report := mustRun(t, opt)
				if report.Acked != 40 || report.Reconnects != 0 || s.connections > 4 {
					t.Errorf("report %+v over %d connections", report, s.connections)
				}
				if n := s.same(&acked); n != 40 {
					t.Errorf("%d lines of acknowledged mail", n)
				}
				want := map[string]bool{}
				for n := range int64(40) {
					want[string(Message(9, n, size))] = true
				}
				for _, m := range s.mails {
					if !want[string(m)] {
						t.Errorf("a message of %d bytes that Message does not make", len(m))
					}
					delete(want, string(m))
				}
			})
		}
	}
}

// Connections break at any point of the dialogue. Whatever is on the list was
// answered, nothing is sent a second time once its text may have arrived, and
// every mail is accounted for.
func TestBrokenConnections(t *testing.T) {
	for _, opt := range modes {
		t.Run(name(opt), func(t *testing.T) {
			const count, size = 300, 2000
			s := newSink(t, func(s *sink) {
				s.lmtp = opt.LMTP
				s.cutAfter = cuts(4, size+max(opt.Recipients, 1)*50)
			})
			var acked bytes.Buffer
			opt.Target, opt.Acked, opt.Size, opt.Count, opt.Sessions = s.addr(), &acked, size, count, 8
			report := mustRun(t, opt)
			lines := s.same(&acked)
			if int64(lines) != report.Acked || report.Acked+report.Unanswered != count {
				t.Errorf("%d lines, report %+v", lines, report)
			}
			if report.Reconnects == 0 || report.Unanswered == 0 || report.Acked == 0 {
				t.Errorf("the cuts did not bite: %+v", report)
			}
			for id, n := range s.taken {
				if n > 1 {
					t.Errorf("%s was sent %d times", id, n)
				}
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	every := func(n int64, verb string, code int) func(string) int {
		var calls atomic.Int64
		return func(v string) int {
			if v == verb && calls.Add(1)%n == 0 {
				return code
			}
			return 0
		}
	}
	for _, opt := range []Options{{}, {BDAT: true}, {LMTP: true}} {
		for _, verb := range []string{"MAIL", "RCPT", "DATA", "text"} {
			if verb == "DATA" && opt.BDAT {
				continue
			}
			for _, code := range []int{452, 550} {
				t.Run(fmt.Sprintf("%s %s %d", name(opt), verb, code), func(t *testing.T) {
					s := newSink(t, func(s *sink) {
						s.lmtp = opt.LMTP
						s.answer = every(5, verb, code)
					})
					var acked bytes.Buffer
					opt.Target, opt.Acked, opt.Size, opt.Count, opt.Sessions = s.addr(), &acked, 1000, 20, 2
					report := mustRun(t, opt)
					lines := int64(s.same(&acked))
					if lines != report.Acked || int64(len(s.taken)) != report.Acked || report.Reconnects != 0 {
						t.Errorf("%d lines, %d taken: %+v", lines, len(s.taken), report)
					}
					if !strings.HasPrefix(report.Complaint, fmt.Sprint(code)) {
						t.Errorf("complaint %q", report.Complaint)
					}
					if code == 550 && (report.Refused != 4 || report.Acked != 16) {
						t.Errorf("want 4 refused: %+v", report)
					}
					if code == 452 && (report.Tempfailed == 0 || report.Acked != 20) {
						t.Errorf("want all taken in the end: %+v", report)
					}
				})
			}
		}
	}
}

func TestMailIsGivenUpAfterItsAttempts(t *testing.T) {
	s := newSink(t, func(s *sink) { s.answer = func(string) int { return 451 } })
	report := mustRun(t, Options{Target: s.addr(), Count: 2, Attempts: 3})
	if report.GivenUp != 2 || report.Tempfailed != 6 || report.Acked != 0 {
		t.Errorf("%+v", report)
	}
}

// A server that drains answers 421 and closes: the mail is offered again.
func TestServiceClosing(t *testing.T) {
	for _, opt := range []Options{{}, {BDAT: true}} {
		t.Run(name(opt), func(t *testing.T) {
			var calls atomic.Int64
			s := newSink(t, func(s *sink) {
				s.answer = func(verb string) int {
					if verb == "MAIL" && calls.Add(1)%7 == 0 {
						return 421
					}
					return 0
				}
			})
			opt.Target, opt.Count = s.addr(), 20
			report := mustRun(t, opt)
			if report.Acked != 20 || report.Unanswered != 0 || report.Reconnects == 0 {
				t.Errorf("%+v", report)
			}
		})
	}
}

func TestTLS(t *testing.T) {
	server := httptest.NewTLSServer(nil) // for its certificate alone
	server.Close()
	trusted := server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	for _, implicit := range []bool{false, true} {
		t.Run(fmt.Sprintf("implicit=%v", implicit), func(t *testing.T) {
			s := newSink(t, func(s *sink) {
				s.tls, s.implicit = &tls.Config{Certificates: server.TLS.Certificates}, implicit
			})
			var acked bytes.Buffer
			opt := Options{Target: s.addr(), Count: 20, Sessions: 2, Acked: &acked, ImplicitTLS: implicit, TLS: &tls.Config{RootCAs: trusted}}
			if report := mustRun(t, opt); report.Acked != 20 || s.same(&acked) != 20 {
				t.Errorf("%+v", report)
			}
			opt.TLS = &tls.Config{RootCAs: x509.NewCertPool()}
			if _, err := Run(t.Context(), opt); err == nil || !strings.Contains(err.Error(), "certificate") {
				t.Errorf("a certificate that nobody trusts: error %v", err)
			}
		})
	}
}

func TestDurationAndRate(t *testing.T) {
	s := newSink(t, nil)
	report := mustRun(t, Options{Target: s.addr(), Sessions: 3, Duration: 300 * time.Millisecond, Rate: 100})
	if report.Acked == 0 || report.Acked > 40 {
		t.Errorf("100 mails/s for 0.3 s: %+v", report)
	}
}

func TestCancelEndsTheRun(t *testing.T) {
	s := newSink(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var acked bytes.Buffer
	report, err := Run(ctx, Options{
		Target: s.addr(), Sessions: 4, Acked: &acked,
		Progress: func(p Progress) {
			if p.Acked > 0 {
				cancel()
			}
		},
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if lines := int64(s.same(&acked)); lines != report.Acked || lines == 0 {
		t.Errorf("%d lines: %+v", lines, report)
	}
}

// A list that cannot be written would make the check worthless.
func TestFailingListEndsTheRun(t *testing.T) {
	s := newSink(t, nil)
	_, err := Run(t.Context(), Options{Target: s.addr(), Sessions: 4, Acked: failing{}})
	if !errors.Is(err, errFull) {
		t.Errorf("error %v", err)
	}
}

var errFull = errors.New("no space left")

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errFull }

func TestErrorsSayWhatToDo(t *testing.T) {
	closed := newSink(t, nil)
	closed.ln.Close()
	noPipelining := newSink(t, func(s *sink) { s.hide = "PIPELINING" })
	noChunking := newSink(t, func(s *sink) { s.hide = "CHUNKING" })
	breaks := newSink(t, func(s *sink) { s.cutAfter = func() (int, int) { return 40, 1 << 30 } })
	for _, test := range []struct {
		opt  Options
		want string
	}{
		{Options{}, "no target"},
		{Options{Target: "x", Sessions: -1}, "at least 1"},
		{Options{Target: "x", Rate: -1}, "may be negative"},
		{Options{Target: "x", From: "a>b"}, "bare addresses"},
		{Options{Target: closed.addr()}, "is a server running"},
		{Options{Target: noPipelining.addr()}, "does not announce PIPELINING"},
		{Options{Target: noChunking.addr(), BDAT: true}, "does not announce CHUNKING"},
		{Options{Target: breaks.addr(), Patience: 50 * time.Millisecond}, "breaks them before a mail is answered"},
	} {
		_, err := Run(t.Context(), test.opt)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: error %v, want %q", test.opt, err, test.want)
		}
	}
}

func TestHistogram(t *testing.T) {
	var h histogram
	for i := range 1000 {
		h.add(time.Duration(i+1) * time.Millisecond)
	}
	for q, want := range map[float64]time.Duration{0.5: 500 * time.Millisecond, 0.99: 990 * time.Millisecond, 1: time.Second} {
		if got := h.quantile(q); float64(got) < 0.97*float64(want) || float64(got) > 1.03*float64(want) {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	for v := range uint64(100_000) {
		if m := uint64(middle(bucket(v))); m > v+v/30 || m < v-v/30 {
			t.Fatalf("%d is counted as %d", v, m)
		}
	}
}

// TestPerSession: a connection carries so many mails and ends politely.
func TestPerSession(t *testing.T) {
	for _, opt := range modes {
		t.Run(name(opt), func(t *testing.T) {
			s := newSink(t, func(s *sink) { s.lmtp = opt.LMTP })
			var acked bytes.Buffer
			opt.Target, opt.Acked, opt.Count, opt.PerSession = s.addr(), &acked, 25, 10
			report := mustRun(t, opt)
			if report.Acked != 25 || report.Reconnects != 0 || s.connections != 3 {
				t.Errorf("report %+v over %d connections, want 3", report, s.connections)
			}
			s.same(&acked)
		})
	}
}

// TestLongestGap: the time in which nothing was acknowledged is told.
func TestLongestGap(t *testing.T) {
	var mails atomic.Int64
	s := newSink(t, func(s *sink) {
		s.answer = func(verb string) int {
			if verb == "DATA" && mails.Add(1) == 5 {
				time.Sleep(300 * time.Millisecond)
			}
			return 0
		}
	})
	report := mustRun(t, Options{Target: s.addr(), Count: 10})
	if report.LongestGap < 300 || report.LongestGap > 1000*report.Seconds || !strings.Contains(report.String(), "without an acknowledged mail") {
		t.Errorf("after a pause of 300 ms: %+v\n%s", report, report)
	}
}
