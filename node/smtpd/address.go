package smtpd

import (
	"bytes"
	"errors"
	"strconv"
)

// An archive takes mail for any address that some mail system has used, and it
// keeps the address as it was given: <postmaster>, "quoted words"@example.com,
// UTF-8 without SMTPUTF8, double dots. go-smtp refuses some of these and alters
// others, so the gate reads the path itself, and shows go-smtp either a path
// that both understand alike or a stand-in.

// parsePath reads the argument of MAIL (keyword "FROM:") or RCPT ("TO:"). The
// path comes without its angle brackets, otherwise exactly as written; a
// missing pair of brackets is tolerated. problem is for the client.
func parsePath(arg []byte, keyword string) (path string, params []byte, problem string) {
	if len(arg) < len(keyword) || !bytes.EqualFold(arg[:len(keyword)], []byte(keyword)) {
		return "", nil, "expected " + keyword + "<address>"
	}
	rest := bytes.TrimLeft(arg[len(keyword):], " \t")
	var raw []byte
	if len(rest) > 0 && rest[0] == '<' {
		end := closingBracket(rest)
		if end < 0 {
			return "", nil, "expected > at the end of the address"
		}
		raw, params = rest[1:end], rest[end+1:]
	} else {
		end := bytes.IndexAny(rest, " \t")
		if end < 0 {
			end = len(rest)
		}
		if raw, params = rest[:end], rest[end:]; end == 0 {
			return "", nil, "expected " + keyword + "<address>"
		}
	}
	if len(raw) > maxPathLength {
		return "", nil, "address too long"
	}
	return string(raw), params, ""
}

// closingBracket finds the > that ends a path; in a quoted local part it has
// no meaning (RFC 5321 4.1.2).
func closingBracket(s []byte) int {
	quoted := false
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			if quoted {
				i++
			}
		case '"':
			quoted = !quoted
		case '>':
			if !quoted {
				return i
			}
		}
	}
	// The quotes do not match: then they are no quotes.
	return bytes.IndexByte(s, '>')
}

// shownPath is the path as go-smtp shall see it, and quote it in its reply.
func shownPath(path, standIn string) []byte {
	if path == "" {
		return nil
	}
	at := -1
	for i := range len(path) {
		switch c := path[i]; {
		case c == '@':
			if at >= 0 {
				return []byte(standIn)
			}
			at = i
		case c <= ' ' || c >= 0x7f || bytes.IndexByte([]byte(`()<>[]:;\,"`), c) >= 0:
			return []byte(standIn)
		}
	}
	if at <= 0 || at == len(path)-1 {
		return []byte(standIn)
	}
	return []byte(path)
}

// validParams reports whether params are esmtp-params (RFC 5321 4.1.2), known
// or not.
func validParams(params []byte) bool {
	for word := range bytes.FieldsSeq(params) {
		keyword, _, _ := bytes.Cut(word, []byte("="))
		if len(keyword) == 0 || keyword[0] == '-' {
			return false
		}
		for _, c := range keyword {
			if c != '-' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
				return false
			}
		}
	}
	return true
}

// param returns the value of a parameter, nil when it is missing.
func param(params []byte, keyword string) []byte {
	for word := range bytes.FieldsSeq(params) {
		key, value, _ := bytes.Cut(word, []byte("="))
		if bytes.EqualFold(key, []byte(keyword)) {
			return value
		}
	}
	return nil
}

func isRange(err error) bool { return errors.Is(err, strconv.ErrRange) }
