package mail

import "strings"

// Addresses returns the bare addr-specs ("user@example.org") in the fields
// with the given names, in the order of the message, each once whatever its
// case. It reads lists, groups, comments, quoted names, routes and domain
// literals (RFC 5322, 3.4 and 4.4); of values that follow no rule it takes
// whatever looks like an address. Names without a domain are left out.
func Addresses(fields []Field, names ...string) []string {
	var out []string
	seen := map[string]bool{}
	for _, f := range fields {
		if !hasName(f, names) {
			continue
		}
		for _, a := range fieldAddresses(f) {
			if key := strings.ToLower(a); !seen[key] {
				seen[key] = true
				out = append(out, a)
			}
		}
	}
	return out
}

// EnvelopeFrom derives an envelope from a header, for mail that arrives
// without one. The sender is that of Return-Path (empty for a bounce's <>),
// else of Sender, else of From; the recipients are all those that any field
// names, the final delivery's included.
func EnvelopeFrom(fields []Field) (from string, to []string) {
	to = Addresses(fields, "To", "Cc", "Bcc", "Resent-To", "Resent-Cc", "Resent-Bcc",
		"Delivered-To", "X-Original-To", "Envelope-To")
	if f, ok := find(fields, "Return-Path"); ok && strings.Contains(f.body(), "<>") {
		return "", to
	}
	for _, name := range []string{"Return-Path", "Sender", "From"} {
		if a := Addresses(fields, name); len(a) > 0 {
			return a[0], to
		}
	}
	return "", to
}

func hasName(f Field, names []string) bool {
	for _, n := range names {
		if strings.EqualFold(f.Name, n) {
			return true
		}
	}
	return false
}

func fieldAddresses(f Field) []string {
	if a := parseAddresses(toUTF8(f.body(), "")); len(a) > 0 {
		return a
	}
	return findAddresses(f.Value) // some mailers encode the whole field, address and all
}

// addressScanner walks over an address list once. A bracket that never closes
// is an ordinary character, and so is every later one of its kind: searching
// for each one's end would cost the square of a hostile field's length.
type addressScanner struct {
	s     string
	pos   int
	text  strings.Builder // the mailbox so far, without comments and angle brackets
	angle string
	found bool // an angle address was seen
	at    bool // text has an at sign
	open  map[byte]bool
	out   []string
}

func parseAddresses(s string) []string {
	p := &addressScanner{s: s, open: map[byte]bool{}}
	for p.pos < len(s) {
		p.step()
	}
	p.endMailbox()
	return p.out
}

func (p *addressScanner) step() {
	c := p.s[p.pos]
	if end := p.closing(c); end > p.pos {
		inside := p.s[p.pos+1 : end-1]
		switch c {
		case '(':
			p.text.WriteByte(' ')
		case '<':
			if !p.found {
				p.angle, p.found = inside, true
			}
		default: // a quoted string or a domain literal
			p.text.WriteString(p.s[p.pos:end])
			p.at = p.at || strings.Contains(inside, "@")
		}
		p.pos = end
		return
	}
	switch {
	case c == ',' || c == ';':
		p.endMailbox()
	case c == ':' && !p.found && !p.at:
		p.text.Reset() // the name of a group, or "mailto:"
	default:
		p.text.WriteByte(c)
		p.at = p.at || c == '@'
	}
	p.pos++
}

// closing returns the offset behind what begins at the current character, or 0
// when nothing begins there, or nothing ends it.
func (p *addressScanner) closing(c byte) int {
	if p.open[c] {
		return 0
	}
	var end int
	switch c {
	case '"':
		end = quotedEnd(p.s, p.pos)
	case '(':
		end = commentEnd(p.s, p.pos)
	case '<':
		end = angleEnd(p.s, p.pos)
	case '[':
		end = strings.IndexByte(p.s[p.pos:], ']') + 1
		if end > 0 {
			end += p.pos
		}
	default:
		return 0
	}
	if end == 0 {
		p.open[c] = true
	}
	return end
}

func (p *addressScanner) endMailbox() {
	text := strings.TrimSpace(p.text.String())
	candidate := text
	if p.found {
		candidate = strings.TrimSpace(p.angle)
		if strings.HasPrefix(candidate, "@") { // an obsolete source route, <@relay:user@host>
			candidate = candidate[strings.LastIndexByte(candidate, ':')+1:]
		}
		if len(candidate) > 7 && strings.EqualFold(candidate[:7], "mailto:") {
			candidate = candidate[7:]
		}
	}
	switch {
	case isAddress(candidate):
		p.out = append(p.out, candidate)
	case p.found && len(findAddresses(p.angle)) > 0:
		p.out = append(p.out, findAddresses(p.angle)...)
	default:
		p.out = append(p.out, findAddresses(text)...)
	}
	p.text.Reset()
	p.angle, p.found, p.at = "", false, false
}

func quotedEnd(s string, pos int) int {
	for i := pos + 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return 0
}

func commentEnd(s string, pos int) int {
	depth := 0
	for i := pos; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return 0
}

func angleEnd(s string, pos int) int {
	quoted := false
	for i := pos + 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			quoted = !quoted
		case '>':
			if !quoted {
				return i + 1
			}
		}
	}
	return 0
}

// findAddresses takes every token that looks like an address out of text that
// follows no grammar.
func findAddresses(s string) []string {
	if !strings.Contains(s, "@") {
		return nil
	}
	var out []string
	for token := range strings.FieldsFuncSeq(s, func(r rune) bool {
		return r <= ' ' || strings.ContainsRune(`<>(),;:"'[]`, r)
	}) {
		if token = strings.TrimRight(token, "."); isAddress(token) {
			out = append(out, token)
		}
	}
	return out
}

// isAddress reports whether s can stand as a mailbox in an envelope. UTF-8 is
// allowed on both sides (RFC 6531).
func isAddress(s string) bool {
	at := strings.LastIndexByte(s, '@')
	if at <= 0 || at == len(s)-1 || len(s) > 1024 {
		return false
	}
	return isLocal(s[:at]) && isDomain(s[at+1:])
}

func isLocal(s string) bool {
	if s[0] == '"' {
		return len(s) > 1 && quotedEnd(s, 0) == len(s)
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c == 0x7f || strings.IndexByte(`()<>,;:"[]\@`, c) >= 0 {
			return false
		}
	}
	return true
}

func isDomain(s string) bool {
	if s[0] == '[' {
		return s[len(s)-1] == ']' && !strings.ContainsAny(s[1:len(s)-1], "[]\\ \t\r\n")
	}
	for i := range len(s) {
		c := s[i]
		ok := c >= 0x80 || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '.' || c == '_'
		if !ok {
			return false
		}
	}
	return s[0] != '.'
}
