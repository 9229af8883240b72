package client

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"chainmail/node/api"
)

// ErrNoNode means that nobody answers where the node should be.
var ErrNoNode = errors.New("no node is running")

// ErrLost means that the connection to the node broke: it may have stopped.
var ErrLost = errors.New("lost the connection")

// ErrAltered means that the bytes that arrived are not those asked for.
var ErrAltered = errors.New("altered")

// Error is a node's refusal.
type Error struct {
	Status     int           // of HTTP
	RetryAfter time.Duration // when the node has no room just now; else 0
	Refusal    api.Error
}

func (e *Error) Error() string {
	if e.Refusal.Hint == "" {
		return e.Refusal.Error
	}
	return e.Refusal.Error + ": " + e.Refusal.Hint
}

// maxErrorBody bounds what is read of an answer that may come from something
// that is no node.
const maxErrorBody = 64 << 10

func readError(resp *http.Response) error {
	e := &Error{Status: resp.StatusCode}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if json.Unmarshal(b, &e.Refusal) != nil || e.Refusal.Error == "" {
		// HEAD has no body, and a proxy has its own words.
		e.Refusal.Error = fmt.Sprintf("%s %s was answered %s", resp.Request.Method, resp.Request.URL.Path, resp.Status)
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		e.RetryAfter = time.Duration(s) * time.Second
	}
	return e
}

// explain says what to do about an error of the transport.
func (c *Client) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // it names a URL that nobody typed
	}
	switch {
	case errors.Is(err, ErrOtherCluster), errors.Is(err, errCertificate):
		return err
	case c.peer != "" && errors.Is(err, http.ErrSchemeMismatch), c.peer != "" && errors.As(err, new(tls.RecordHeaderError)):
		return fmt.Errorf("what answers at %s speaks no TLS: see whether it is the address of a node's HTTP port", c.peer)
	case c.peer != "" && errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w at %s: see whether the node is running there, and whether %s is the address of its HTTP port", ErrNoNode, c.peer, c.peer)
	case c.peer != "":
		return fmt.Errorf("no answer from the node at %s: %w", c.peer, err)
	case c.socket == "" && errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w at %s: %w: start it, or give the address of its --http listener", ErrNoNode, c.base, err)
	case c.socket == "":
		return fmt.Errorf("%w to the node at %s: %w: see whether it is running, then repeat", ErrLost, c.base, err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w on %s: start it with 'chainmail node --data-dir %s', or name another with --data-dir or --socket", ErrNoNode, c.socket, filepath.Dir(c.socket))
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("may not open %s: run the command as root or as the user that the node runs as", c.socket)
	default:
		return fmt.Errorf("%w to the node on %s: %w: see with 'chainmail status' whether it is running, then repeat", ErrLost, c.socket, err)
	}
}
