package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"sync"
	"time"

	"chainmail/archive/record"
)

// Item is one message of a source.
type Item struct {
	Name string                        // for people: a path, perhaps with a number
	Open func() (io.ReadCloser, error) // its exact bytes; called once or twice before the source goes on
}

// DefaultWorkers is how many messages an import has on the way at once: the
// node then syncs them in groups.
const DefaultWorkers = 8

// Import uploads every item that the archive lacks. It hashes each one first
// and asks for it, so that importing a source again adds nothing and is quick.
//
// progress, when it is not nil, is told after every item, by one goroutine at
// a time. An item that cannot be read or that the node refuses is counted and
// the import goes on; the error is not nil when the import could not go on: ctx
// ended, the node is gone, or it takes no mail. What was added stays, and the
// import may be repeated.
func (c *Client) Import(ctx context.Context, source iter.Seq2[Item, error], workers int, progress func(Summary)) (Summary, error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	if workers <= 0 {
		workers = DefaultWorkers
	}
	run := tally{progress: progress}
	jobs := make(chan *localItem)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for local := range jobs {
				added, err := c.importItem(ctx, local)
				close(local.done)
				if err != nil && ends(ctx, err) {
					stop(fmt.Errorf("the import stopped at %s: %w", local.name, err))
					continue // so that nobody waits to hand over a job
				}
				run.count(local.name, added, local.size, err)
			}
		})
	}
	for it, err := range source {
		var local *localItem
		if err == nil {
			local, err = readItem(it)
		}
		if err != nil {
			run.count(it.Name, false, 0, err)
			continue
		}
		jobs <- local
		if !local.kept {
			<-local.done // it is read again, and its source may close it when it goes on
		}
		if ctx.Err() != nil {
			break
		}
	}
	close(jobs)
	wg.Wait()
	return run.summary, context.Cause(ctx)
}

// ends reports whether an error concerns the node, or the caller's wish, and
// not one item.
func ends(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return true
	}
	if _, ok := errors.AsType[*itemError](err); ok {
		return false
	}
	refused, ok := errors.AsType[*Error](err)
	if !ok {
		return true // the transport's: the node is gone
	}
	switch refused.Status {
	case http.StatusBadRequest, http.StatusConflict, http.StatusRequestEntityTooLarge,
		http.StatusRequestTimeout, http.StatusInternalServerError:
		return false
	default:
		return true
	}
}

// itemError is a failure to read an item.
type itemError struct{ error }

func (e *itemError) Unwrap() error { return e.error }

// importItem reports whether the item was added.
func (c *Client) importItem(ctx context.Context, local *localItem) (added bool, err error) {
	held, err := c.Has(ctx, local.hash)
	if err != nil || held {
		return false, err
	}
	return c.uploadItem(ctx, local)
}

// maxBusy bounds how often a busy node is asked again for one message.
const maxBusy = 60

func (c *Client) uploadItem(ctx context.Context, local *localItem) (added bool, err error) {
	for try := 1; ; try++ {
		body, err := local.open()
		if err != nil {
			return false, &itemError{err}
		}
		source := &uploadBody{body: body, left: local.size}
		answer, err := c.Upload(ctx, source, local.size)
		refusal, refused := errors.AsType[*Error](err)
		switch {
		case err == nil && answer.SHA256 != local.hash.String():
			return false, &itemError{fmt.Errorf("%w; what was read last is archived as %s", errChanged, answer.SHA256)}
		case err == nil:
			return !answer.Existing, nil
		case !refused && source.failure() != nil && ctx.Err() == nil:
			return false, &itemError{source.failure()}
		case !refused || refusal.RetryAfter == 0 || try == maxBusy:
			return false, err
		}
		select {
		case <-time.After(refusal.RetryAfter):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// keepItem is the size up to which an item stays in memory between hashing and
// uploading, so that it is read once.
const keepItem = 512 << 10

// localItem is an item that was hashed.
type localItem struct {
	name string
	hash record.Hash
	size int64
	kept bool // in memory
	open func() (io.ReadCloser, error)
	done chan struct{} // closed when open will not be called again
}

func readItem(it Item) (*localItem, error) {
	body, err := it.Open()
	if err != nil {
		return nil, err
	}
	defer body.Close()
	var start bytes.Buffer
	sum := sha256.New()
	n, err := io.CopyN(io.MultiWriter(sum, &start), body, keepItem)
	if err == nil {
		var rest int64
		rest, err = io.Copy(sum, body)
		n += rest
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	local := &localItem{name: it.Name, hash: record.Hash(sum.Sum(nil)), size: n, open: it.Open, done: make(chan struct{})}
	if local.kept = n == int64(start.Len()); local.kept {
		local.open = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(start.Bytes())), nil }
	}
	return local, nil
}

// uploadBody is the body of one upload. The transport reads and closes it, and
// may still do so when the answer is here already.
type uploadBody struct {
	mu     sync.Mutex
	body   io.ReadCloser
	left   int64 // bytes that should still come
	failed error // why it could not be read: the transport's own words blame the connection
}

var errChanged = errors.New("it changed while it was imported: import it again")

func (u *uploadBody) Read(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.left == 0 {
		return 0, io.EOF // what was added since it was hashed is for the next import
	}
	n, err := u.body.Read(p[:min(int64(len(p)), u.left)])
	u.left -= int64(n)
	if errors.Is(err, io.EOF) && u.left > 0 {
		err = errChanged
	}
	if err != nil && !errors.Is(err, io.EOF) && u.failed == nil {
		u.failed = err
	}
	return n, err
}

func (u *uploadBody) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.body.Close()
}

func (u *uploadBody) failure() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.failed
}
