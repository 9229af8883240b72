package smtpd

import (
	"bytes"
	"log/slog"
	"strconv"
)

// command carries out what the gate does itself and hands the rest to go-smtp,
// cleaned of trailing spaces.
func (g *gate) command(line []byte) {
	line = bytes.TrimRight(line, " \t")
	if bytes.ContainsFunc(line, isControl) {
		g.refuse("500 5.5.2 control character in command")
		return
	}
	verb, arg, _ := bytes.Cut(line, []byte(" "))
	arg = bytes.TrimLeft(arg, " \t")
	upper(verb)
	if g.link.pool == poolFront && !g.mayEnter(string(verb)) {
		return
	}
	switch string(verb) {
	case "MAIL":
		g.mail(arg)
	case "RCPT":
		g.rcpt(arg)
	case "DATA":
		g.data(arg)
	case "BDAT":
		g.bdat(arg)
	case "STARTTLS":
		g.startTLS(arg)
	case "HELO", "EHLO", "LHLO":
		g.greeting(verb, arg)
	case "RSET", "NOOP", "QUIT", "VRFY", "EXPN", "HELP", "AUTH":
		g.hand(verb, []byte(" "), arg)
	case "GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT":
		// A web browser that was lured here would send mail with its next lines.
		g.linger = true
		g.end("421 4.7.0 this is a mail server")
	case "PROXY":
		// A balancer that is not trusted. If the session went on, the client behind it
		// would take each reply for that to the command before.
		g.link.refused(reasonProxy)
		g.link.log.Warn("PROXY protocol header from an address that is no balancer: if it is one, name it with chainmail cluster set balancers=…",
			slog.String("balancer", g.link.socket.RemoteAddr().String()))
		g.linger = true
		g.end("421 4.7.0 no PROXY header is expected from your address")
	default:
		g.refuse("500 5.5.1 command not recognized")
	}
}

// isControl tells the characters that no command has, and no receipt should.
func isControl(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }

// upper is strings.ToUpper for ASCII, in place. Long words are no verbs.
func upper(verb []byte) {
	for i, c := range verb[:min(len(verb), 8)] {
		if 'a' <= c && c <= 'z' {
			verb[i] = c - 'a' + 'A'
		}
	}
}

// hand puts together the next line for go-smtp.
func (g *gate) hand(parts ...[]byte) {
	line := g.scratch[:0]
	for _, p := range parts {
		line = append(line, p...)
	}
	line = append(bytes.TrimRight(line, " "), '\r', '\n')
	g.line = line
	if g.scratch = line; cap(line) > commandBuffer {
		g.scratch = nil
	}
}

func (g *gate) greeting(verb, arg []byte) {
	name, _, _ := bytes.Cut(arg, []byte(" "))
	if len(name) > maxHeloLength {
		g.refuse("501 5.5.4 name too long")
		return
	}
	if len(name) > 0 {
		g.helo = string(name)
	}
	g.hand(verb, []byte(" "), name)
}

// mail gives go-smtp the sender only. Parameters that could matter are kept
// here; all others are taken and have no effect, because they ask for something
// about the delivery, and an archive delivers nowhere.
func (g *gate) mail(arg []byte) {
	path, params, problem := parsePath(arg, "FROM:")
	s := g.session
	switch {
	case g.helo == "":
		g.refuse("503 5.5.1 HELO or EHLO first")
	case s.inChunks():
		g.refuse("503 5.5.1 message transfer under way: BDAT or RSET expected")
	case problem != "":
		g.refuse("501 5.1.7 " + problem)
	case !validParams(params):
		g.refuse("501 5.5.4 malformed parameter of MAIL")
	default:
		s.path = path
		s.declared = declaredSize(params)
		body := ""
		if bytes.EqualFold(param(params, "BODY"), []byte("BINARYMIME")) {
			body = " BODY=BINARYMIME" // go-smtp refuses DATA then
		}
		g.hand([]byte("MAIL FROM:<"), shownPath(path, "sender@as.given"), []byte(">"), []byte(body))
	}
}

func (g *gate) rcpt(arg []byte) {
	path, params, problem := parsePath(arg, "TO:")
	s := g.session
	switch {
	case !s.open:
		g.refuse("503 5.5.1 MAIL first")
	case s.inChunks():
		g.refuse("503 5.5.1 message transfer under way: BDAT or RSET expected")
	case problem == "" && path == "":
		g.refuse("501 5.1.3 a recipient is needed")
	case problem != "":
		g.refuse("501 5.1.3 " + problem)
	case !validParams(params):
		g.refuse("501 5.5.4 malformed parameter of RCPT")
	default:
		s.path = path
		g.hand([]byte("RCPT TO:<"), shownPath(path, "recipient@as.given"), []byte(">"))
	}
}

func (g *gate) data(arg []byte) {
	s := g.session
	switch {
	case s.inChunks():
		g.refuse("503 5.5.1 message transfer under way: BDAT or RSET expected")
	case s.open && len(s.to) == 0:
		g.refuse("554 5.5.1 no valid recipients") // RFC 5321 4.1.1.4
	case !s.open:
		g.refuse("503 5.5.1 MAIL and RCPT first")
	default:
		g.chunked = false
		g.hand([]byte("DATA "), arg)
	}
}

// declaredSize reads SIZE (RFC 1870: up to 20 digits). What is no number says
// nothing, and the message is measured anyway.
func declaredSize(params []byte) int64 {
	size, err := strconv.ParseUint(string(param(params, "SIZE")), 10, 64)
	switch {
	case err == nil && size < 1<<62:
		return int64(size)
	case isRange(err), err == nil:
		return 1 << 62
	}
	return 0
}
