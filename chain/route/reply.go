package route

import (
	"bufio"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// reply is what a server answered (RFC 5321 4.2).
type reply struct {
	code  int
	lines []string // the text of each line, without the code
}

const (
	maxReplyLine  = 4 << 10 // bytes; RFC 5321 allows 512
	maxReplyLines = 1_000
)

func (r reply) String() string {
	text := strings.TrimSpace(printable(strings.Join(r.lines, " ")))
	return strings.TrimSpace(strconv.Itoa(r.code) + " " + shortened(text, 500))
}

func (r reply) ok() bool       { return r.code/100 == 2 }
func (r reply) forNow() bool   { return r.code/100 == 4 }
func (r reply) forGood() bool  { return r.code/100 == 5 }
func (r reply) closing() bool  { return r.code == 421 } // RFC 5321 3.8
func (r reply) noLogin() bool  { return r.code == 530 || r.code == 538 }
func (r reply) tooMany() bool  { return r.code == 552 } // of RCPT: RFC 5321 4.5.3.1.10 has it taken for 452
func (r reply) goAhead() bool  { return r.code == 354 }
func (r reply) question() bool { return r.code == 334 }

// errGarbage: what came is no reply. Nothing that follows can be understood.
var errGarbage = errors.New("the server does not speak SMTP")

// readReply reads one reply, all its lines.
func readReply(r *bufio.Reader) (reply, error) {
	var all reply
	for {
		line, err := readLine(r)
		if err != nil {
			return reply{}, err
		}
		code, last, text, ok := parseReplyLine(line)
		switch {
		case !ok, len(all.lines) > 0 && code != all.code:
			return reply{}, fmt.Errorf("%w: it says %q", errGarbage, shortened(line, 80))
		case len(all.lines) == maxReplyLines:
			return reply{}, fmt.Errorf("%w: a reply of more than %d lines", errGarbage, maxReplyLines)
		}
		all.code = code
		all.lines = append(all.lines, text)
		if last {
			return all, nil
		}
	}
}

// readLine reads a line of bounded length, without its line end; a bare LF is
// one too.
func readLine(r *bufio.Reader) (string, error) {
	var line []byte
	for {
		piece, err := r.ReadSlice('\n')
		line = append(line, piece...)
		switch {
		case len(line) > maxReplyLine:
			return "", fmt.Errorf("%w: a line of more than %d bytes", errGarbage, maxReplyLine)
		case err == nil:
			return strings.TrimSuffix(string(line[:len(line)-1]), "\r"), nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return "", err
		}
	}
}

func parseReplyLine(line string) (code int, last bool, text string, ok bool) {
	if len(line) < 3 || line[0] < '2' || line[0] > '5' || !isDigit(line[1]) || !isDigit(line[2]) {
		return 0, false, "", false
	}
	code = 100*int(line[0]-'0') + 10*int(line[1]-'0') + int(line[2]-'0')
	switch {
	case len(line) == 3:
		return code, true, "", true
	case line[3] == ' ', line[3] == '-':
		return code, line[3] == ' ', line[4:], true
	}
	return 0, false, "", false
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// printable makes a text from outside fit for logs and terminals.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' || 0x80 <= r && r < 0xa0 {
			return '?'
		}
		return r
	}, text)
}

// shortened cuts a text to n bytes, between characters.
func shortened(text string, n int) string {
	if len(text) <= n {
		return text
	}
	return strings.ToValidUTF8(text[:n], "") + "…"
}
