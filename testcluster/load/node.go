package load

import (
	"context"
	"errors"
	"io"
	"net/http"

	"chainmail/node/client"
)

// Node lets Check read from a chainmail node.
func Node(c *client.Client) Archive { return node{c} }

type node struct{ c *client.Client }

func (n node) Receipts(ctx context.Context, sha256 string) (int, error) {
	m, err := n.c.Message(ctx, sha256)
	if e, ok := errors.AsType[*client.Error](err); ok && e.Status == http.StatusNotFound {
		return 0, nil
	}
	return len(m.Receipts), err
}

func (n node) Raw(ctx context.Context, sha256 string) (io.ReadCloser, error) {
	return n.c.Raw(ctx, sha256)
}
