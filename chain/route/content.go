package route

import (
	"fmt"
	"io"
	"slices"
)

// content is a mail's bytes, known to be readable and what they are made of.
type content struct {
	size   int64
	traits traits
	small  []byte // all of it, unless it is large
	open   func() (io.ReadCloser, error)
}

// traits decide which BODY a mail is sent as.
type traits struct {
	eightBit bool // bytes above 127
	binary   bool // NUL, CR or LF alone, or lines longer than SMTP's
}

const (
	smallContent = 1 << 20 // bytes; what is larger is read twice
	longestLine  = 998     // bytes, RFC 5321 4.5.3.1.6
	blockSize    = 64 << 10
)

// inspect reads a body once, before anything of it is sent.
func inspect(size int64, open func() (io.ReadCloser, error)) (*content, error) {
	body, err := open()
	if err != nil {
		return nil, err
	}
	defer body.Close()
	c := &content{size: size, open: open}
	var s scanner
	var read int64
	if size <= smallContent {
		c.small = make([]byte, 0, size)
	}
	block := make([]byte, min(blockSize, size+1))
	for {
		n, err := body.Read(block)
		s.scan(block[:n])
		if read += int64(n); read <= smallContent && c.small != nil {
			c.small = append(c.small, block[:n]...)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	if read != size {
		return nil, fmt.Errorf("the body has %d bytes, its receipt says %d", read, size)
	}
	c.traits = s.end()
	return c, nil
}

// copyTo gives the bytes in blocks. An error of reading comes as *unreadable.
func (c *content) copyTo(w io.Writer) error {
	if c.small != nil {
		for block := range slices.Chunk(c.small, blockSize) {
			if _, err := w.Write(block); err != nil {
				return err
			}
		}
		return nil
	}
	body, err := c.open()
	if err != nil {
		return &unreadable{err}
	}
	defer body.Close()
	// A block is let go when the next one was read well: the last one, which
	// makes a mail of what was sent, only when all of it is known to be right.
	blocks := [2][]byte{make([]byte, blockSize), make([]byte, blockSize)}
	var held []byte
	var read int64
	for i := 0; ; i++ {
		n, err := io.ReadFull(body, blocks[i%2])
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return &unreadable{err}
		}
		if read += int64(n); err != nil && read != c.size {
			return &unreadable{fmt.Errorf("the body ends after %d of %d bytes", read, c.size)}
		}
		if _, err := w.Write(held); err != nil {
			return err
		}
		held = blocks[i%2][:n]
		if err != nil {
			_, err = w.Write(held)
			return err
		}
	}
}

// unreadable is an error of this node's own: the mail may not be parked, and
// the server is not to blame.
type unreadable struct{ err error }

func (u *unreadable) Error() string { return "not readable here: " + u.err.Error() }
func (u *unreadable) Unwrap() error { return u.err }

// scanner looks at a body piece by piece.
type scanner struct {
	traits traits
	cr     bool // the byte before was CR
	line   int  // bytes of the line so far
}

func (s *scanner) scan(p []byte) {
	for _, c := range p {
		if c >= 0x80 {
			s.traits.eightBit = true
		}
		if c == 0 || s.cr != (c == '\n') { // CR and LF come together only
			s.traits.binary = true
		}
		if s.cr = c == '\r'; c == '\n' {
			s.line = 0
		} else if s.line++; s.line > longestLine+1 { // with its CR
			s.traits.binary = true
		}
	}
}

func (s *scanner) end() traits {
	if s.cr {
		s.traits.binary = true
	}
	return s.traits
}
