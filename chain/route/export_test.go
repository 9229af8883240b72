package route

import (
	"bufio"
	"bytes"
	"io"
)

// For tests of what the face shows only through a server.

// Stuff gives what DATA sends for a body, written in pieces of n bytes.
func Stuff(body []byte, n int) []byte {
	var out bytes.Buffer
	s := newStuffer(&out)
	for len(body) > 0 {
		k := min(n, len(body))
		if _, err := s.Write(body[:k]); err != nil {
			panic(err)
		}
		body = body[k:]
	}
	if err := s.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

// ReadReply reads a reply and gives how it prints.
func ReadReply(r io.Reader) (code int, text string, err error) {
	answer, err := readReply(bufio.NewReaderSize(r, 16))
	return answer.code, answer.String(), err
}

// Backoff is the delay after the n-th failure.
var Backoff = backoff

// Traits says what a body is made of, seen in pieces of n bytes.
func Traits(body []byte, n int) (eightBit, binary bool) {
	var s scanner
	for len(body) > 0 {
		k := min(n, len(body))
		s.scan(body[:k])
		body = body[k:]
	}
	t := s.end()
	return t.eightBit, t.binary
}
