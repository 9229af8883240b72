package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"chainmail/archive"
	"chainmail/archive/mailbox"
	"chainmail/archive/record"
	"chainmail/node/client"
	"chainmail/node/httpd"
)

func opens(bodies ...io.Reader) func() (io.ReadCloser, error) {
	var calls atomic.Int64
	return func() (io.ReadCloser, error) {
		return io.NopCloser(bodies[min(int(calls.Add(1)), len(bodies))-1]), nil
	}
}

// TestImportGoesOnAfterBadItems: what concerns one item does not end the rest.
func TestImportGoesOnAfterBadItems(t *testing.T) {
	n := start(t, nil)
	unreadable, gone := errors.New("input/output error"), errors.New("no such folder")
	large := bytes.Repeat([]byte("x"), 600<<10)
	bad := []client.Item{
		{Name: "cannot open", Open: func() (io.ReadCloser, error) { return nil, unreadable }},
		{Name: "cannot read", Open: opens(io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(unreadable)))},
		{Name: "cannot read again", Open: opens(bytes.NewReader(large), io.MultiReader(bytes.NewReader(large[:100<<10]), iotest.ErrReader(unreadable)))},
		{Name: "too large", Open: func() (io.ReadCloser, error) {
			return io.NopCloser(io.LimitReader(zeros{}, 20<<20+1)), nil
		}},
		{Name: "shrank", Open: opens(bytes.NewReader(large), bytes.NewReader(large[:590<<10]))},
		{Name: "altered", Open: opens(bytes.NewReader(large), bytes.NewReader(bytes.ToUpper(large)))},
	}
	source := func(yield func(client.Item, error) bool) {
		if !yield(client.Item{Name: "folder"}, gone) {
			return
		}
		for _, it := range bad {
			if !yield(it, nil) {
				return
			}
		}
		// One that grows meanwhile is imported as it was.
		yield(client.Item{Name: "grew", Open: opens(bytes.NewReader(large), bytes.NewReader(append(large[:len(large):len(large)], 'y')))}, nil)
		items(corpus())(yield)
	}
	s, err := n.Import(t.Context(), source, 4, nil)
	if err != nil || s.Failed != uint64(len(bad)+1) || s.Added != uint64(len(corpus())+1) {
		t.Fatalf("%+v, %v", s, err)
	}
	reasons := map[string]string{}
	for _, f := range s.Failures {
		reasons[f.Name] = f.Err.Error()
	}
	for name, want := range map[string]string{
		"folder": "no such folder", "cannot open": "input/output error", "cannot read": "input/output error", "cannot read again": "input/output error",
		"too large": "limit of 20971520 bytes", "shrank": "changed", "altered": "changed",
	} {
		if !strings.Contains(reasons[name], want) {
			t.Errorf("%s: %q, want %q in it", name, reasons[name], want)
		}
	}
	// What was archived of the altered one is whole, and of the others nothing.
	if st, err := n.Status(t.Context()); err != nil || st.Messages != uint64(len(corpus())+2) {
		t.Errorf("%d messages, %v", st.Messages, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestFailuresAreBounded(t *testing.T) {
	n := start(t, nil)
	source := func(yield func(client.Item, error) bool) {
		for range 1000 {
			if !yield(client.Item{Name: "x"}, io.ErrNoProgress) {
				return
			}
		}
	}
	s, err := n.Import(t.Context(), source, 4, nil)
	if err != nil || s.Failed != 1000 || len(s.Failures) != 100 {
		t.Errorf("%d failed, %d told, %v", s.Failed, len(s.Failures), err)
	}
}

// TestImportStopsOnFullDisk: at once, with what to do; and goes on when it is
// run again.
func TestImportStopsOnFullDisk(t *testing.T) {
	mails, ctx := corpus(), t.Context()
	full := start(t, func(o *httpd.Options) {
		begin := o.Begin
		var begun atomic.Int64
		o.Begin = func(ctx context.Context) (httpd.Draft, error) {
			if begun.Add(1) == 20 {
				return nil, fmt.Errorf("%w: 5 bytes are free", archive.ErrDiskFull)
			}
			return begin(ctx)
		}
	})
	s, err := full.Import(ctx, items(mails), 1, nil)
	if err == nil || s.Added != 19 || s.Failed != 0 {
		t.Fatalf("%+v, %v", s, err)
	}
	for _, w := range []string{"the import stopped at mail 19", "5 bytes are free", "free space", "repeat"} {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q: want %q in it", err, w)
		}
	}
	if s, err = full.Import(ctx, items(mails), 8, nil); err != nil || s.Existing != 19 || s.Added != uint64(len(mails)-19) {
		t.Errorf("repeated: %+v, %v", s, err)
	}
}

// TestImportStops: with its node, and with its caller.
func TestImportStops(t *testing.T) {
	for _, who := range []string{"node", "caller"} {
		t.Run(who, func(t *testing.T) {
			n := start(t, nil)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			taken := 0
			source := func(yield func(client.Item, error) bool) {
				for it, err := range items(corpus()) {
					if taken++; taken == 30 {
						if who == "node" {
							n.stop()
						} else {
							cancel()
						}
					}
					if !yield(it, err) {
						return
					}
				}
			}
			s, err := n.Import(ctx, source, 4, nil)
			if who == "caller" && !errors.Is(err, context.Canceled) || who == "node" && !errors.Is(err, client.ErrNoNode) && !errors.Is(err, client.ErrLost) {
				t.Errorf("%v", err)
			}
			if s.Failed != 0 || s.Added > 30 || taken > 40 {
				t.Errorf("%+v, %d taken", s, taken)
			}
		})
	}
}

// TestImportWaitsForABusyNode: a 503 with Retry-After is no failure.
func TestImportWaitsForABusyNode(t *testing.T) {
	var asked atomic.Int64
	n := start(t, func(o *httpd.Options) {
		begin := o.Begin
		o.Begin = func(ctx context.Context) (httpd.Draft, error) {
			if asked.Add(1) == 1 {
				return nil, archive.ErrBusy
			}
			return begin(ctx)
		}
	})
	s, err := n.Import(t.Context(), items(corpus()[2:3]), 1, nil)
	if err != nil || s.Added != 1 || asked.Load() != 2 {
		t.Errorf("%+v, %v, asked %d times", s, err, asked.Load())
	}
}

// damaging is an archive with one message that cannot be read whole.
type damaging struct {
	*archive.Archive
	at record.Hash
}

func (d *damaging) Body(h record.Hash) (io.ReadCloser, error) {
	body, err := d.Archive.Body(h)
	if h == d.at && err == nil {
		damage := fmt.Errorf("%w: chunk 9", archive.ErrCorrupt)
		return io.NopCloser(io.MultiReader(io.LimitReader(body, 200<<10), iotest.ErrReader(damage))), nil
	}
	return body, err
}

// TestExportGoesOnAfterDamage: the sink never sees a damaged message, and the
// others are exported.
func TestExportGoesOnAfterDamage(t *testing.T) {
	var d *damaging
	n := start(t, func(o *httpd.Options) {
		d = &damaging{Archive: o.Archive.(*archive.Archive)}
		o.Archive = d
	})
	mails := corpus()
	if _, err := n.Import(t.Context(), items(mails), 0, nil); err != nil {
		t.Fatal(err)
	}
	for _, damaged := range []int{4, 5, 59} { // found at the end, in the middle, and not at all: it is too short
		if err := d.at.UnmarshalText([]byte(sum(mails[damaged]))); err != nil {
			t.Fatal(err)
		}
		var out sink
		s, err := n.Export(t.Context(), client.Query{}, &out, nil)
		if err != nil || s.Failed != 1 || s.Added != uint64(len(mails)-1) || len(out.hashes) != len(mails)-1 {
			t.Errorf("mail %d: %+v, %v, the sink has %d", damaged, s, err, len(out.hashes))
			continue
		}
		if s.Failures[0].Name != sum(mails[damaged]) {
			t.Errorf("mail %d: failed is %v", damaged, s.Failures[0])
		}
	}
}

func TestExportStops(t *testing.T) {
	n := start(t, nil)
	if _, err := n.Import(t.Context(), items(corpus()), 0, nil); err != nil {
		t.Fatal(err)
	}
	out := sink{err: errors.New("no space left on device")}
	s, err := n.Export(t.Context(), client.Query{}, &out, nil)
	if err == nil || !strings.Contains(err.Error(), "no space left") || s.Added != 0 || len(out.hashes) != 0 {
		t.Errorf("sink: %+v, %v", s, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s, err = n.Export(ctx, client.Query{}, new(sink), func(client.Summary) { cancel() })
	if !errors.Is(err, context.Canceled) || s.Failed != 0 {
		t.Errorf("caller: %+v, %v", s, err)
	}
	_, err = n.Export(t.Context(), client.Query{To: "nobody@"}, new(sink), nil)
	if refusal, ok := errors.AsType[*client.Error](err); !ok || refusal.Status != http.StatusBadRequest {
		t.Errorf("bad query: %v", err)
	}
	_, err = n.Export(t.Context(), client.Query{}, new(sink), func(client.Summary) { n.stop() })
	if !errors.Is(err, client.ErrNoNode) && !errors.Is(err, client.ErrLost) {
		t.Errorf("node: %v", err)
	}
}

// TestMailboxes: an export in every format, imported again, adds nothing.
func TestMailboxes(t *testing.T) {
	n, ctx := start(t, nil), t.Context()
	mails := corpus()[2:20] // mbox cannot tell an empty message from none
	if _, err := n.Import(ctx, items(mails), 0, nil); err != nil {
		t.Fatal(err)
	}
	for _, format := range []mailbox.Format{mailbox.EML, mailbox.MboxOut, mailbox.Maildir, mailbox.Zip} {
		dir := t.TempDir()
		out := filepath.Join(dir, "out."+string(format))
		sink, err := mailbox.Create(format, out)
		if err != nil {
			t.Fatal(err)
		}
		exported, err := n.Export(ctx, client.Query{}, sink, nil)
		if err := errors.Join(err, sink.Close()); err != nil || exported.Added != uint64(len(mails)) {
			t.Fatalf("%s: %+v, %v", format, exported, err)
		}
		source := func(yield func(client.Item, error) bool) {
			for it, err := range mailbox.Open([]string{dir}, mailbox.Options{}) {
				if !yield(client.Item{Name: it.Name, Open: it.Open}, err) {
					return
				}
			}
		}
		s, err := n.Import(ctx, source, 4, nil)
		if err != nil || s.Added != 0 || s.Existing != uint64(len(mails)) || s.Failed != 0 {
			t.Errorf("%s: imported again: %+v, %v", format, s, err)
		}
	}
}
