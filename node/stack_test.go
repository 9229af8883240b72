package node

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
)

// journal notes what happens, in order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) note(s string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, s)
}

func (j *journal) part(name string, fail <-chan error) part {
	return part{name, func(ctx context.Context) (err error) {
		select {
		case <-ctx.Done():
		case err = <-fail:
		}
		j.note(name)
		return err
	}}
}

func TestStackStopsFromTheTop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var j journal
		go func() {
			synctest.Wait()
			cancel()
		}()
		err := runStack(ctx, []part{j.part("archive", nil), j.part("HTTP", nil), j.part("SMTP", nil)})
		if got := strings.Join(j.lines, " "); err != nil || got != "SMTP HTTP archive" {
			t.Errorf("stopped %s: %v", got, err)
		}
	})
}

func TestStackEndsWhenAPartFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		broken := make(chan error, 1)
		broken <- errors.New("socket gone")
		err := runStack(t.Context(), []part{j.part("archive", nil), j.part("HTTP", broken), j.part("SMTP", nil)})
		if err == nil || err.Error() != "HTTP: socket gone" {
			t.Errorf("got error %v", err)
		}
		if got := j.lines[len(j.lines)-1]; len(j.lines) != 3 || got != "archive" {
			t.Errorf("stopped %v: the archive must be last", j.lines)
		}
	})
}
