package load

import (
	"net"
	"slices"
	"strconv"
	"time"
)

// Message returns the n-th message of a seed: the same bytes for the same
// arguments for ever, and the bytes that Run sends under these numbers. It is
// size bytes long, unless size is less than its header takes (about 400 bytes);
// then it is a header alone.
//
// It is a text/plain message in English-like words, at every size: no
// attachment, because base64 of random bytes is cheap to compress and would
// flatter an archive. Zstandard at its first level makes about 2.2 of it. Some
// lines begin with dots.
func Message(seed uint64, n int64, size int) []byte {
	var m mail
	m.compose(seed, n, size)
	return slices.Concat(m.appendText(net.Buffers{}, plain)...)
}

// mail is one message on its way: its number, its header, and where in the
// shared text its body begins. It is reused by its session.
type mail struct {
	n      int64
	tries  int    // how often it was refused with 4xx
	header []byte // with the empty line that ends it
	line   int    // of the shared text, the first of the body
	body   int    // bytes of the body
}

// Size is the length of the message as it must be archived, in bytes.
func (m *mail) Size() int { return len(m.header) + m.body }

const (
	paddingField = "X-Padding: "
	loadDomain   = "load.example"
)

// compose makes m the n-th message of a seed. The body is whole lines of the
// shared text; a field of the header takes up what is left of size.
func (m *mail) compose(seed uint64, n int64, size int) {
	*m = mail{n: n, header: m.header[:0]}
	t := text()
	m.line = int(mix(seed, uint64(n)) % uint64(t.lines()))
	m.appendHeader(seed)

	const end = "\r\n"
	room := size - len(m.header) - len(paddingField) - 2*len(end)
	m.body = t.fit(m.line, room)
	m.header = append(m.header, paddingField...)
	for range room - m.body {
		m.header = append(m.header, '-')
	}
	m.header = append(m.header, end+end...)
}

func (m *mail) appendHeader(seed uint64) {
	h := m.header
	sender, subject := mix(seed, uint64(m.n)+1)%977, mix(seed, uint64(m.n)+2)
	h = append(h, "From: Sender "...)
	h = strconv.AppendUint(h, sender, 10)
	h = append(h, " <sender"...)
	h = strconv.AppendUint(h, sender, 10)
	h = append(h, "@"+loadDomain+">\r\nTo: Archive <archive@"+loadDomain+">\r\nSubject: "...)
	for range 4 {
		h = append(h, words[subject%uint64(len(words))]...)
		h = append(h, ' ')
		subject /= uint64(len(words))
	}
	h = strconv.AppendInt(h, m.n, 10)
	h = append(h, "\r\nDate: "...)
	h = firstDate.Add(time.Duration(m.n)*time.Second).AppendFormat(h, time.RFC1123Z)
	h = append(h, "\r\nMessage-ID: <"...)
	h = strconv.AppendUint(h, seed, 16)
	h = append(h, '.')
	h = strconv.AppendInt(h, m.n, 10)
	h = append(h, "@"+loadDomain+">\r\nMIME-Version: 1.0\r\n"+
		"Content-Type: text/plain; charset=us-ascii\r\nContent-Transfer-Encoding: 7bit\r\n"...)
	m.header = h
}

// firstDate is the Date of message 0; message n is n seconds younger.
var firstDate = time.Date(2026, time.January, 5, 9, 0, 0, 0, time.UTC)

// appendText adds the message to a list of buffers for writev, in its archived
// form or with its dots doubled (RFC 5321 section 4.5.2). The header has no
// line that begins with a dot. The buffers are shared: nobody may write to them.
func (m *mail) appendText(to net.Buffers, f form) net.Buffers {
	return text().append(append(to, m.header), m.line, m.body, f)
}

// mix is SplitMix64 over a seed and a number: well spread, and cheap.
func mix(seed, n uint64) uint64 {
	z := seed + (n+1)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
