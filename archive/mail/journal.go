package mail

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"chainmail/archive/record"
)

var (
	// ErrNotJournal means that the message is not a journal report. It is an
	// ordinary message and no reason for alarm.
	ErrNotJournal = errors.New("not a journal report")
	// ErrBadJournal means that the message is a journal report whose inner
	// message cannot be had; what wraps it says why.
	ErrBadJournal = errors.New("damaged journal report")
	// ErrProtected means that the message inside a report is encrypted by its
	// sender's rights management, attached as application/ms-tnef. What the
	// report says is known all the same. Decryption of journal reports is
	// switched on at the Exchange server (Set-IRMConfiguration
	// -JournalReportDecryptionEnabled $true).
	ErrProtected = errors.New("the message inside the journal report is rights-protected (application/ms-tnef)")
)

const (
	maxPartHeader = 64 << 10
	maxReportText = 8 << 20 // some 100,000 recipients
)

// JournalParser recognises an Exchange or Microsoft 365 journal report while
// its bytes are written to it, and finds out what it says:
//
//	X-MS-Journal-Report:
//	Content-Type: multipart/mixed; boundary=b
//
//	--b
//	Content-Type: text/plain       the report, see parseReport
//
//	--b
//	Content-Type: message/rfc822   the message as it was sent: the inner message
//
//	--b
//	Content-Type: message/rfc822   perhaps a decrypted copy of it
//
// It is a sink beside the archive's own: Write never fails, never blocks and
// keeps at most 9 MiB, usually some kilobytes. It owns no goroutine, so it may
// be dropped at any time.
type JournalParser struct {
	header   []byte // until its empty line
	marked   bool   // a header field says that this is a journal report
	splitter *splitter
	part     partState
	parts    int
	text     bytes.Buffer // the report, transfer encoding taken off
	textType map[string]string
	report   *reportText
	inner    innerState
	// protected: there was an application/ms-tnef part in place of a message.
	protected bool
	err       error
	done      bool // nothing that follows matters
}

// partState is the part that goes by.
type partState struct {
	header []byte
	inBody bool
	body   decoder // nil: the body is of no use
}

// innerState is what is known of the inner message.
type innerState struct {
	copyTo io.Writer // of Inner; nil otherwise
	digest hash.Hash
	size   int64
	begun  bool
	ended  bool
}

func (s *innerState) Write(b []byte) (int, error) {
	s.size += int64(len(b))
	s.digest.Write(b)
	if s.copyTo != nil {
		return s.copyTo.Write(b)
	}
	return len(b), nil
}

// NewJournalParser returns a parser to write one message to.
func NewJournalParser() *JournalParser {
	return &JournalParser{inner: innerState{digest: sha256.New()}}
}

// Write takes the next bytes of the message. It always takes all of them.
func (p *JournalParser) Write(b []byte) (int, error) {
	n := len(b)
	if p.splitter == nil && !p.done {
		b = p.readHeader(b)
	}
	if p.splitter != nil && !p.done {
		p.splitter.write(b)
	}
	return n, nil
}

// Close tells the parser that the message is complete, and returns what the
// report says. With ErrProtected the journal is returned too, its Inner zero,
// because the recipients are known. Other errors are ErrNotJournal and
// ErrBadJournal. Closing again gives the same answer.
func (p *JournalParser) Close() (*record.Journal, error) {
	if p.splitter == nil && !p.done {
		p.endHeader(p.header)
	}
	if !p.done {
		p.endBody(p.splitter.finish())
	}
	if p.err != nil && !errors.Is(p.err, ErrProtected) {
		return nil, p.err
	}
	j := p.report.journal
	if p.err == nil {
		p.inner.digest.Sum(j.Inner[:0])
		j.InnerSize = p.inner.size
	}
	return &j, p.err
}

// endBody says why the end of the input was reached without an inner message.
func (p *JournalParser) endBody(closed bool) {
	switch {
	case p.done: // the last delimiter ended it
	case p.protected && p.marked && p.report != nil:
		p.done, p.err = true, ErrProtected
	case !closed:
		p.fail("it ends before the closing boundary")
	default:
		p.fail("no message is attached to it")
	}
}

// fail ends the parsing. A message that neither is marked as a report nor
// reads like one is none, whatever is wrong with it.
func (p *JournalParser) fail(format string, args ...any) {
	p.done = true
	if p.marked || p.report != nil && p.inner.begun {
		p.err = fmt.Errorf("%w: "+format, append([]any{ErrBadJournal}, args...)...)
	} else {
		p.err = ErrNotJournal
	}
}

// readHeader collects the header and returns the bytes behind it.
func (p *JournalParser) readHeader(b []byte) []byte {
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n') + 1
		if i == 0 {
			i = len(b)
		}
		p.header = append(p.header, b[:i]...)
		b = b[i:]
		if len(p.header) > maxHeader {
			p.marked = isMarked(parseHeader(p.header[:maxHeader]))
			p.header = nil
			p.fail("its header is longer than %d bytes", maxHeader)
			return nil
		}
		if endsHeader(p.header) {
			p.endHeader(p.header)
			return b
		}
	}
	return nil
}

// endsHeader reports whether block's last line is the empty line.
func endsHeader(block []byte) bool {
	head, ok := bytes.CutSuffix(block, []byte{'\n'})
	head = bytes.TrimSuffix(head, []byte{'\r'})
	return ok && (len(head) == 0 || head[len(head)-1] == '\n')
}

func (p *JournalParser) endHeader(block []byte) {
	fields := parseHeader(block)
	p.header = nil
	p.marked = isMarked(fields)
	contentType, _ := find(fields, "Content-Type")
	kind, params := mediaType(contentType.body())
	if boundary := params["boundary"]; kind == "multipart/mixed" && boundary != "" {
		p.splitter = newSplitter(boundary, p)
	} else {
		p.fail("its Content-Type is %q, not multipart/mixed with a boundary", contentType.body())
	}
}

// isMarked looks for the fields by which Exchange marks its reports: since
// 2007 the first, inside the organisation the second, and in 2003 the third,
// in both its spellings.
func isMarked(fields []Field) bool {
	for _, f := range fields {
		switch strings.ToLower(f.Name) {
		case "x-ms-journal-report", "x-ms-exchange-organization-journal-report":
			return true
		case "content-identifier", "content-identifer":
			if strings.EqualFold(f.Value, "exjournalreport") {
				return true
			}
		}
	}
	return false
}

func (p *JournalParser) beginPart() {
	p.parts++
	p.part = partState{header: p.part.header[:0]}
}

func (p *JournalParser) partBytes(b []byte) {
	for !p.part.inBody && !p.done && len(b) > 0 {
		i := bytes.IndexByte(b, '\n') + 1
		if i == 0 {
			i = len(b)
		}
		p.part.header = append(p.part.header, b[:i]...)
		b = b[i:]
		if endsHeader(p.part.header) {
			p.beginBody()
		} else if len(p.part.header) > maxPartHeader {
			p.fail("the header of its part %d is longer than %d bytes", p.parts, maxPartHeader)
		}
	}
	if p.done || p.part.body == nil || len(b) == 0 {
		return
	}
	if _, err := p.part.body.Write(b); err != nil {
		p.fail("part %d: %v", p.parts, err)
	}
}

// beginBody decides by its header what a part is good for.
func (p *JournalParser) beginBody() {
	p.part.inBody = true
	fields := parseHeader(p.part.header)
	kind, params := "text/plain", map[string]string(nil)
	if f, ok := find(fields, "Content-Type"); ok {
		kind, params = mediaType(f.body())
	}
	var sink io.Writer
	switch {
	case p.parts == 1 && kind == "text/plain":
		p.textType = params
		sink = &limitedBuffer{&p.text, maxReportText}
	case p.parts == 1:
		p.fail("its first part is %s, not text/plain", kind)
		return
	case kind == "message/rfc822" || kind == "message/global":
		p.inner.begun = true
		sink = &p.inner
	case kind == "application/ms-tnef":
		p.protected = true
		return
	default:
		return // a footer added on the way
	}
	encoding, _ := find(fields, "Content-Transfer-Encoding")
	var err error
	if p.part.body, err = newDecoder(encoding.body(), sink); err != nil {
		p.fail("part %d: %v", p.parts, err)
	}
}

func (p *JournalParser) endPart() {
	if p.done {
		return
	}
	if !p.part.inBody { // a part of a header only
		p.beginBody()
	}
	if p.done || p.part.body == nil {
		return
	}
	if err := p.part.body.Close(); err != nil {
		p.fail("part %d: %v", p.parts, err)
		return
	}
	if p.parts == 1 {
		p.endText()
	} else {
		p.inner.ended, p.done = true, true
	}
}

// endText decides whether this is a journal report at all.
func (p *JournalParser) endText() {
	text, ok := decodeCharset(p.textType["charset"], p.text.Bytes())
	if !ok {
		text = toUTF8(p.text.String(), "")
	}
	p.text = bytes.Buffer{}
	r := parseReport(text)
	switch {
	case r.hasSender && (p.marked || len(r.journal.Recipients) > 0):
		p.report = &r
	default:
		p.fail("its text has no Sender line")
	}
}

// limitedBuffer refuses to grow beyond max bytes.
type limitedBuffer struct {
	*bytes.Buffer
	max int
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if b.Len()+len(p) > b.max {
		return 0, fmt.Errorf("it is longer than %d bytes", b.max)
	}
	return b.Buffer.Write(p)
}
