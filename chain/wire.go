package chain

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// Lines and replies of SMTP, as far as the link needs them. The limits are of
// RFC 5321 4.5.3.1 where they are not our own.
const (
	maxLine       = 1000     // a command line, its CRLF included
	maxReplyLine  = 512      // a line of a reply
	maxReplyBytes = 16 << 20 // all lines of a reply
	textPerLine   = 500      // what we put into a line of a reply
)

// reply is a reply of SMTP. An exchange that fails because of one has it as
// its error.
type reply struct {
	code  int
	lines []string // without the code
}

// says makes a reply of one line.
func says(code int, format string, args ...any) reply {
	return reply{code, []string{fmt.Sprintf(format, args...)}}
}

func (r reply) ok() bool { return r.code/100 == 2 }

// Error is the reply as the peer gave it, in one line.
func (r reply) Error() string { return strconv.Itoa(r.code) + " " + strings.Join(r.lines, " ") }

// encode gives the lines as they go over the wire.
func (r reply) encode() []byte {
	var b bytes.Buffer
	for i, line := range r.lines {
		sep := '-'
		if i == len(r.lines)-1 {
			sep = ' '
		}
		fmt.Fprintf(&b, "%d%c%s\r\n", r.code, sep, line)
	}
	return b.Bytes()
}

// fold cuts a text over lines of a reply.
func fold(text string) []string {
	var lines []string
	for len(text) > textPerLine {
		lines = append(lines, text[:textPerLine])
		text = text[textPerLine:]
	}
	return append(lines, text)
}

var (
	errLongLine  = errors.New("a line is too long")
	errNoReply   = errors.New("what came is no SMTP reply")
	errLongReply = fmt.Errorf("a reply is longer than %d bytes", maxReplyBytes)
)

// readLine reads a line of at most limit bytes and takes its end off.
func readLine(r *bufio.Reader, limit int) (string, error) {
	line, err := r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull) || len(line) > limit:
		return "", errLongLine
	case err != nil:
		return "", err
	}
	return string(bytes.TrimSuffix(line[:len(line)-1], []byte("\r"))), nil
}

// readReply reads one reply. Its error is about the connection; a reply that
// refuses is no error.
func readReply(r *bufio.Reader) (reply, error) {
	var all reply
	for size := 0; size < maxReplyBytes; {
		line, err := readLine(r, maxReplyLine)
		if err != nil {
			return reply{}, err
		}
		size += len(line)
		if len(line) < 3 {
			return reply{}, fmt.Errorf("%w: %.80q", errNoReply, line)
		}
		code, err := strconv.Atoi(line[:3])
		last := len(line) == 3 || line[3] == ' '
		if err != nil || code < 200 || code > 599 || !last && line[3] != '-' || len(all.lines) > 0 && code != all.code {
			return reply{}, fmt.Errorf("%w: %.80q", errNoReply, line)
		}
		all.code = code
		all.lines = append(all.lines, line[min(4, len(line)):])
		if last {
			return all, nil
		}
	}
	return reply{}, errLongReply
}

// allowance is how long something of this many bytes may take.
func allowance(size int) time.Duration {
	return patience + time.Duration(size)*time.Second/slowest
}

// overdue gives a time-out its meaning.
func overdue(err error, what string) error {
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return fmt.Errorf("%s is overdue: the peer is silent", what)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// address reads "<local@chain.invalid>" and what follows it.
func address(s string) (local, rest string, ok bool) {
	s, rest, _ = strings.Cut(s, ">")
	local, domain, at := strings.Cut(strings.TrimPrefix(s, "<"), "@")
	return local, strings.TrimSpace(rest), at && strings.HasPrefix(s, "<") && domain == mailDomain
}

// mailDomain is the domain of the addresses of the link: it exists nowhere
// (RFC 2606), so nothing of it can ever become mail.
const mailDomain = "chain.invalid"
