package smtpd

import (
	"bytes"
	"io"
	"strconv"
)

// Chunks (RFC 3030) are read here and not by go-smtp, which takes a connection
// that ends inside a chunk for the end of the message and acknowledges it, and
// whose goroutine for one message can answer the next. The gate answers every
// chunk but the last one itself, as the session has it, and turns the last
// into "BDAT 0 LAST": go-smtp then calls Data, which commits.

func (g *gate) bdat(arg []byte) {
	s := g.session
	size, last, problem := parseBdat(arg)
	switch {
	case problem != "":
		// Where the chunk ends is unknown, so nothing behind it can be read.
		g.linger = true
		g.refuse("501 5.5.4 " + problem)
		g.ended = true
	case !s.open || len(s.to) == 0:
		g.skipChunk(size)
	case size > g.link.limits.flood()-s.size:
		g.link.refused(reasonSize)
		g.linger = true
		g.reply("552 5.3.4 message too large")
		g.ended = true
	default:
		g.takeChunk(size, last)
	}
}

func parseBdat(arg []byte) (size int64, last bool, problem string) {
	number, rest, _ := bytes.Cut(arg, []byte(" "))
	n, err := strconv.ParseUint(string(number), 10, 62)
	if err != nil {
		return 0, false, "chunk size expected"
	}
	rest = bytes.TrimSpace(rest)
	last = bytes.EqualFold(rest, []byte("LAST"))
	if len(rest) > 0 && !last {
		return 0, false, "LAST or nothing expected behind the chunk size"
	}
	return int64(n), last, ""
}

// skipChunk drops a chunk that belongs to no mail: most often one that was
// already on its way when the chunk before it failed.
func (g *gate) skipChunk(size int64) {
	if size > g.link.limits.flood()-g.wasted {
		g.linger = true
		g.reply("503 5.5.1 MAIL and RCPT first")
		g.ended = true
		return
	}
	g.wasted += size + 1
	if err := g.readExactly(size, func([]byte) error { return nil }); err != nil {
		g.cutShort(err)
		return
	}
	g.reply("503 5.5.1 MAIL and RCPT first")
}

func (g *gate) takeChunk(size int64, last bool) {
	s := g.session
	s.begin()
	if limit := g.link.limits.MaxMessageSize; s.failure == nil && s.size+size > limit {
		s.fail(g.link.refuse(reasonSize, s.tooLarge())) // without waiting for all of it
	}
	if err := g.readExactly(size, s.write); err != nil {
		g.cutShort(err)
		return
	}
	switch {
	case last:
		g.chunked = true
		g.hand([]byte("BDAT 0 LAST"))
	case s.failure != nil:
		// This chunk's own reply tells; the mail is over, for go-smtp too.
		g.reply(replyLine(s.failure))
		g.mute = true
		g.hand([]byte("RSET"))
	default:
		g.reply("250 2.0.0 " + strconv.FormatInt(size, 10) + " bytes")
	}
}

// cutShort ends a connection in the middle of a body: the rest of it, should
// it still come, must not be read as commands.
func (g *gate) cutShort(err error) {
	g.session.giveUp()
	if err == io.EOF {
		g.end("421 4.4.2 connection closed inside a message")
		return
	}
	g.linger = true
	g.end("421 4.4.2 the message did not arrive in time")
}
