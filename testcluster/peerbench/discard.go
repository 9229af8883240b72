package main

import (
	"context"
	"io"
	"os"

	"github.com/emersion/go-smtp"
)

// discardCommand is the hidden first argument with which this program is the
// server below: a process of its own, so that its processor time can be read.
const discardCommand = "serve-discard"

func startDiscard(ctx context.Context) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	return startForeground(ctx, addr, self, discardCommand, addr)
}

// serveDiscard is go-smtp as it comes, with a backend that reads all mail and
// keeps nothing: the ceiling for a server that is built on it.
func serveDiscard(addr string) error {
	s := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return discard{}, nil }))
	s.Addr, s.Domain = addr, "discard.example"
	return s.ListenAndServe()
}

type discard struct{}

func (discard) Mail(string, *smtp.MailOptions) error { return nil }
func (discard) Rcpt(string, *smtp.RcptOptions) error { return nil }
func (discard) Reset()                               {}
func (discard) Logout() error                        { return nil }

func (discard) Data(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}
