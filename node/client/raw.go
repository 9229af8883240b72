package client

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strings"

	"chainmail/archive/record"
)

// Raw opens the bytes of a message. They are hashed while they are read: when
// they do not have the SHA-256 that was asked for, or, for an ID that is no
// whole SHA-256, the one that the node names, the last Read gives ErrAltered
// in place of io.EOF.
func (c *Client) Raw(ctx context.Context, id string) (io.ReadCloser, error) {
	resp, err := c.do(ctx, http.MethodGet, messagePath(id)+"/raw", nil, 0)
	if err != nil {
		return nil, err
	}
	want, err := record.ParseHash(id)
	if err != nil {
		want, err = record.ParseHash(strings.Trim(resp.Header.Get("ETag"), `"`))
	}
	if err != nil {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("message %s: the node does not name its SHA-256: %w", id, err)
	}
	return &checkedBody{ReadCloser: resp.Body, want: want, sum: sha256.New()}, nil
}

type checkedBody struct {
	io.ReadCloser
	want record.Hash
	sum  hash.Hash
}

func (b *checkedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.sum.Write(p[:n])
	switch {
	case err == nil:
		return n, nil
	case !errors.Is(err, io.EOF):
		return n, fmt.Errorf("message %s: broken off by the node, which may have found it damaged: %w", b.want, err)
	}
	if got := record.Hash(b.sum.Sum(nil)); got != b.want {
		return n, fmt.Errorf("message %s: %w: what arrived has SHA-256 %s", b.want, ErrAltered, got)
	}
	return n, io.EOF
}
