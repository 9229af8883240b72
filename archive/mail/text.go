package mail

import (
	"bytes"
	"encoding/base64"
	"io"
	"mime"
	"strings"
	"unicode/utf8"

	"github.com/emersion/go-message/charset"
	"golang.org/x/text/encoding/charmap"
)

// toUTF8 reads text of an unsure charset: UTF-8 where it is valid, since other
// charsets hardly ever are by accident, else the label's, else windows-1252,
// in which every byte is something.
func toUTF8(s, label string) string {
	if utf8.ValidString(s) {
		return s
	}
	if !strings.EqualFold(label, "utf-8") {
		if t, ok := decodeCharset(label, []byte(s)); ok {
			return t
		}
	}
	t, _ := charmap.Windows1252.NewDecoder().String(s)
	return strings.ToValidUTF8(t, "\uFFFD")
}

// decodeCharset turns bytes of a labelled charset into UTF-8; false means that
// the label is not known. Bytes the charset does not have become U+FFFD.
func decodeCharset(label string, b []byte) (string, bool) {
	label, _, _ = strings.Cut(strings.ToLower(strings.TrimSpace(label)), "*") // RFC 2231, 5: a language may follow
	var r io.Reader
	switch label {
	case "utf-8", "utf8":
		return strings.ToValidUTF8(string(b), "\uFFFD"), true
	case "", "us-ascii", "ascii", "iso-8859-1", "iso8859-1", "latin1":
		// Mail that says Latin 1 and has bytes from 0x80 to 0x9F means windows-1252.
		if utf8.Valid(b) {
			return string(b), true
		}
		r = charmap.Windows1252.NewDecoder().Reader(bytes.NewReader(b))
	default:
		var err error
		if r, err = charset.Reader(label, bytes.NewReader(b)); err != nil {
			return "", false
		}
	}
	t, err := io.ReadAll(r)
	if err != nil {
		return "", false
	}
	return strings.ToValidUTF8(string(t), "\uFFFD"), true
}

// decodeWords decodes the encoded words of RFC 2047, also where they stand
// without the required spaces. Neighbours of one charset are joined before the
// charset is decoded, because mailers split words in the middle of characters.
// What is no encoded word, or has an unknown charset, stays as it is.
func decodeWords(s string) string {
	if !strings.Contains(s, "=?") {
		return s
	}
	var out strings.Builder
	var run wordRun
	for {
		i := strings.Index(s, "=?")
		if i < 0 {
			break
		}
		w, ok := cutWord(s[i:])
		if !ok {
			run.flush(&out)
			out.WriteString(s[:i+2])
			s = s[i+2:]
			continue
		}
		between := s[:i]
		if len(run.raw) == 0 || strings.Trim(between, " \t") != "" {
			run.flush(&out)
			out.WriteString(between)
		}
		run.add(&out, w, between)
		s = s[i+len(w.raw):]
	}
	run.flush(&out)
	out.WriteString(s)
	return out.String()
}

// word is one encoded word.
type word struct {
	charset string
	bytes   []byte // with the transfer encoding taken off
	raw     string
}

// cutWord reads the encoded word at the beginning of s, which begins "=?". It
// looks no further than the fourth question mark, so that hostile input costs
// no more than its length.
func cutWord(s string) (word, bool) {
	label, rest, ok := strings.Cut(s[2:], "?")
	if !ok || label == "" || strings.ContainsAny(label, " \t") || len(rest) < 2 || rest[1] != '?' {
		return word{}, false
	}
	text, _, ok := strings.Cut(rest[2:], "?")
	end := 2 + len(label) + 1 + 2 + len(text)
	if !ok || !strings.HasPrefix(s[end:], "?=") {
		return word{}, false
	}
	w := word{charset: strings.ToLower(label), raw: s[:end+2]}
	switch rest[0] {
	case 'q', 'Q':
		w.bytes = decodeQ(text)
	case 'b', 'B':
		var err error
		text = strings.TrimRight(strings.ReplaceAll(text, " ", ""), "=")
		if w.bytes, err = base64.RawStdEncoding.DecodeString(text); err != nil {
			return word{}, false
		}
	default:
		return word{}, false
	}
	return w, true
}

// decodeQ takes the Q encoding of RFC 2047, 4.2 off. An equals sign without
// two digits stands for itself.
func decodeQ(s string) []byte {
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '_':
			out = append(out, ' ')
		case '=':
			if i+2 < len(s) {
				if v, ok := hexByte(s[i+1], s[i+2]); ok {
					out = append(out, v)
					i += 2
					continue
				}
			}
			out = append(out, c)
		default:
			out = append(out, c)
		}
	}
	return out
}

func hexByte(hi, lo byte) (byte, bool) {
	h, ok1 := hexDigit(hi)
	l, ok2 := hexDigit(lo)
	return h<<4 | l, ok1 && ok2
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}

// wordRun joins neighbouring encoded words of one charset.
type wordRun struct {
	charset string
	bytes   []byte
	raw     []byte // the words as they stood, for an unknown charset
}

func (r *wordRun) add(out *strings.Builder, w word, between string) {
	if r.charset != w.charset {
		r.flush(out)
	}
	if len(r.raw) > 0 {
		r.raw = append(r.raw, between...)
	}
	r.charset = w.charset
	r.bytes = append(r.bytes, w.bytes...)
	r.raw = append(r.raw, w.raw...)
}

func (r *wordRun) flush(out *strings.Builder) {
	if len(r.raw) == 0 {
		return
	}
	if t, ok := decodeCharset(r.charset, r.bytes); ok {
		out.WriteString(t)
	} else {
		out.Write(r.raw)
	}
	*r = wordRun{}
}

// mediaType reads a Content-Type or Content-Disposition value: the lower-case
// type, and the parameters by lower-case name. Where the standard parser gives
// up, parameters are cut at semicolons.
func mediaType(value string) (string, map[string]string) {
	if t, params, err := mime.ParseMediaType(value); err == nil {
		return t, params
	}
	t, rest, _ := strings.Cut(value, ";")
	params := map[string]string{}
	for p := range strings.SplitSeq(rest, ";") {
		name, v, ok := strings.Cut(p, "=")
		name = strings.ToLower(strings.TrimSpace(name))
		if _, dup := params[name]; ok && !dup {
			params[name] = strings.Trim(strings.TrimSpace(v), `"`)
		}
	}
	return strings.ToLower(strings.TrimSpace(t)), params
}
