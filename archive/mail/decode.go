package mail

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
)

// decoder takes a transfer encoding off what is written to it. Close writes
// what is left and tells whether the input was whole.
type decoder interface {
	io.Writer
	Close() error
}

// newDecoder returns the decoder for a Content-Transfer-Encoding value. An
// unknown encoding is an error: guessing would give the wrong bytes.
func newDecoder(encoding string, w io.Writer) (decoder, error) {
	encoding, _, _ = strings.Cut(encoding, ";")
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "", "7bit", "8bit", "binary":
		return identity{w}, nil
	case "base64":
		return &base64Decoder{w: w}, nil
	case "quoted-printable":
		return &qpDecoder{w: w}, nil
	}
	return nil, fmt.Errorf("unknown Content-Transfer-Encoding %q", encoding)
}

type identity struct{ io.Writer }

func (identity) Close() error { return nil }

var errBase64 = errors.New("damaged base64")

// base64Decoder decodes base64 (RFC 2045, 6.8) in groups of four digits.
type base64Decoder struct {
	w      io.Writer
	digits []byte // digits not decoded yet
	out    []byte
	padded bool // a padded group ended the data
}

func (d *base64Decoder) Write(b []byte) (int, error) {
	for _, c := range b {
		switch {
		case c == '\r' || c == '\n' || c == ' ' || c == '\t':
			continue
		case d.padded:
			return 0, errBase64
		}
		d.digits = append(d.digits, c)
		if c == '=' && len(d.digits)%4 == 0 {
			d.padded = true
		}
		if d.padded || len(d.digits) == 4096 {
			if err := d.flush(); err != nil {
				return 0, err
			}
		}
	}
	return len(b), nil
}

func (d *base64Decoder) flush() error {
	if cap(d.out) < len(d.digits) {
		d.out = make([]byte, 4096)
	}
	n, err := base64.StdEncoding.Decode(d.out[:cap(d.out)], d.digits)
	d.digits = d.digits[:0]
	if err != nil {
		return errBase64
	}
	_, err = d.w.Write(d.out[:n])
	return err
}

// Close supplies padding that was left out.
func (d *base64Decoder) Close() error {
	for len(d.digits)%4 != 0 {
		d.digits = append(d.digits, '=')
	}
	return d.flush()
}

// qpDecoder decodes quoted-printable (RFC 2045, 6.7). White space at a line's
// end is transport padding; an equals sign that quotes nothing is kept.
type qpDecoder struct {
	w     io.Writer
	space []byte // white space that may turn out to be padding
	quote []byte // "=", "=X" or "=" and white space: an unfinished quotation
	out   []byte
}

func (d *qpDecoder) Write(b []byte) (int, error) {
	d.out = d.out[:0]
	for _, c := range b {
		d.next(c)
	}
	_, err := d.w.Write(d.out)
	return len(b), err
}

func (d *qpDecoder) next(c byte) {
	if len(d.quote) > 0 && d.inQuote(c) {
		return
	}
	switch {
	case c == '=':
		d.keep(d.space)
		d.space = d.space[:0]
		d.quote = append(d.quote, c)
	case c == ' ' || c == '\t' || c == '\r':
		if len(d.space) >= maxPadding {
			d.keep(d.space)
			d.space = d.space[:0]
		}
		d.space = append(d.space, c)
	case c == '\n':
		if n := len(d.space); n > 0 && d.space[n-1] == '\r' {
			d.keep([]byte{'\r'})
		}
		d.space = d.space[:0]
		d.keep([]byte{c})
	default:
		d.keep(d.space)
		d.space = d.space[:0]
		d.keep([]byte{c})
	}
}

// inQuote goes on with what an equals sign began; false: c is not part of it.
func (d *qpDecoder) inQuote(c byte) bool {
	if len(d.quote) == 2 {
		if v, ok := hexByte(d.quote[1], c); ok {
			d.keep([]byte{v})
			d.quote = d.quote[:0]
			return true
		}
	}
	if len(d.quote) == 1 {
		if _, ok := hexDigit(c); ok {
			d.quote = append(d.quote, c)
			return true
		}
	}
	switch last := d.quote[len(d.quote)-1]; {
	case c == '\n' && (last == '=' || isBlank(last)):
		d.quote = d.quote[:0] // a soft line break
		return true
	case isBlank(c) && (last == '=' || isBlank(last)) && len(d.quote) < maxPadding:
		d.quote = append(d.quote, c)
		return true
	}
	d.keep(d.quote)
	d.quote = d.quote[:0]
	return false
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' || c == '\r' }

func (d *qpDecoder) keep(b []byte) { d.out = append(d.out, b...) }

func (d *qpDecoder) Close() error {
	d.out = d.out[:0]
	if len(d.quote) > 1 { // an equals sign alone is a soft break at the end
		d.keep(d.quote)
	}
	d.keep(d.space)
	_, err := d.w.Write(d.out)
	return err
}
