package mail

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
)

// maxHeader bounds the bytes of a header that are looked at. The longest ones
// seen in the field hold thousands of recipients and stay under 300 KiB.
const maxHeader = 1 << 20

// Field is one header field.
type Field struct {
	Name  string // as it is spelled in the message
	Value string // unfolded, RFC 2047 words decoded, always valid UTF-8
	Raw   string // the field's exact bytes, name and folding included, without the last line end
}

// body gives what follows the colon, unfolded but not decoded: addresses and
// parameters are parsed from it, since a decoded word may hold any character.
func (f Field) body() string {
	_, v, _ := strings.Cut(f.Raw, ":")
	if strings.ContainsAny(v, "\r\n") {
		v = unfolder.Replace(v)
	}
	return strings.Trim(v, " \t\r")
}

// RFC 5322, 2.2.3: unfolding removes the line ends and keeps the white space.
var unfolder = strings.NewReplacer("\r\n", "", "\n", "")

// ParseHeader reads a message's header, up to the first empty line. Lines may
// end with CRLF or LF. Lines that are no field (no colon, a name with spaces,
// an mbox From_ line) are left out. Bytes that are not UTF-8 are read as the
// charset the message declares, or else as windows-1252.
//
// Of a header longer than 1 MiB only the fields that end within it are
// returned. The only errors are those of r. ParseHeader may read past the
// header.
func ParseHeader(r io.Reader) ([]Field, error) {
	block, err := readHeader(r)
	if err != nil {
		return nil, err
	}
	return parseHeader(block), nil
}

// Get returns the value of the first field with the name, in any case, or "".
func Get(fields []Field, name string) string {
	f, _ := find(fields, name)
	return f.Value
}

func find(fields []Field, name string) (Field, bool) {
	for _, f := range fields {
		if strings.EqualFold(f.Name, name) {
			return f, true
		}
	}
	return Field{}, false
}

// readHeader returns the whole lines before the first empty one.
func readHeader(r io.Reader) ([]byte, error) {
	var block []byte
	br := bufio.NewReader(r)
	lineStart := 0
	for {
		chunk, err := br.ReadSlice('\n')
		if len(block)+len(chunk) > maxHeader {
			return block[:lineStart], nil // half a field would give half an address
		}
		block = append(block, chunk...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF):
			return block, nil
		case err != nil:
			return nil, err
		case isEmptyLine(block[lineStart:]):
			return block[:lineStart], nil
		}
		lineStart = len(block)
	}
}

// parseHeader finds the fields in the lines of a header; it ends at an empty
// line if there is one.
func parseHeader(block []byte) []Field {
	var fields []Field
	start, end := -1, 0 // of the field being read; -1: none, or a malformed one
	flush := func() {
		if start >= 0 {
			raw := string(block[start:end])
			name, _, _ := strings.Cut(raw, ":")
			fields = append(fields, Field{Name: strings.TrimRight(name, " \t"), Raw: raw})
		}
	}
	for pos := 0; pos < len(block); {
		next := lineEnd(block, pos)
		line := trimLineEnd(block[pos:next])
		if len(line) == 0 {
			break
		}
		if line[0] != ' ' && line[0] != '\t' {
			flush()
			start = -1
			if isField(line) {
				start = pos
			}
		}
		end = pos + len(line)
		pos = next
	}
	flush()
	charset := declaredCharset(fields)
	for i, f := range fields {
		fields[i].Value = decodeWords(toUTF8(f.body(), charset))
	}
	return fields
}

// isField reports whether a line begins a header field: a name of printable
// ASCII without spaces, perhaps white space (obsolete, but seen), and a colon.
func isField(line []byte) bool {
	i := bytes.IndexByte(line, ':')
	if i < 0 {
		return false
	}
	name := bytes.TrimRight(line[:i], " \t")
	for _, c := range name {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return len(name) > 0
}

func declaredCharset(fields []Field) string {
	f, ok := find(fields, "Content-Type")
	if !ok {
		return ""
	}
	_, params := mediaType(f.body())
	return params["charset"]
}

// lineEnd is the offset just behind the line that begins at pos.
func lineEnd(b []byte, pos int) int {
	if i := bytes.IndexByte(b[pos:], '\n'); i >= 0 {
		return pos + i + 1
	}
	return len(b)
}

// trimLineEnd takes CRLF or LF off a line. A CR at the very end of the input
// goes as well: it is half a line end.
func trimLineEnd(line []byte) []byte {
	line = bytes.TrimSuffix(line, []byte{'\n'})
	return bytes.TrimSuffix(line, []byte{'\r'})
}

func isEmptyLine(line []byte) bool { return len(trimLineEnd(line)) == 0 }
