package mailbox

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"strings"
)

// place says where a file was found, and so how sure it is that it is mail.
type place int

const (
	placeFolder  place = iota // among other files
	placeNamed                // given by the user
	placeMaildir              // in cur or new: always one message
)

type kind int

const (
	kindUnknown kind = iota
	kindEmpty
	kindOutlook
	kindMessage
	kindMbox
	kindZip
)

func (k kind) why() string {
	switch k {
	case kindEmpty:
		return "empty"
	case kindOutlook:
		return "an Outlook file; save its messages as EML or mbox first"
	}
	return "does not look like mail; if it is one message, give its name the ending .eml"
}

// headSize is how much of a file is looked at.
const headSize = 8 << 10

// detect finds out what a file is. gz says that it is compressed with gzip.
func detect(name string, p place) (k kind, gz bool, err error) {
	if p == placeMaildir {
		return kindMessage, false, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return 0, false, err
	}
	defer f.Close()
	head, err := readHead(f)
	if err != nil {
		return 0, false, err
	}
	lower := strings.ToLower(name)
	if bytes.HasPrefix(head, []byte{0x1f, 0x8b}) && !strings.HasSuffix(lower, ".eml") {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return 0, false, err
		}
		z, err := gzip.NewReader(f)
		if err != nil {
			return 0, false, err
		}
		if head, err = readHead(z); err != nil {
			return 0, false, err
		}
		gz, lower = true, strings.TrimSuffix(lower, ".gz")
		p = placeFolder // compressed files hold many other things
	}
	return detectHead(lower, head, p), gz, nil
}

func readHead(r io.Reader) ([]byte, error) {
	head := make([]byte, headSize)
	n, err := io.ReadFull(r, head)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return head[:n], err
}

func detectHead(lowerName string, head []byte, p place) kind {
	switch {
	case strings.HasSuffix(lowerName, ".eml"):
		return kindMessage
	case len(head) == 0:
		return kindEmpty
	case bytes.HasPrefix(bytes.TrimLeft(head, "\r\n"), []byte("From ")):
		return kindMbox
	case bytes.HasPrefix(head, []byte("PK\x03\x04")) || bytes.HasPrefix(head, []byte("PK\x05\x06")):
		return kindZip
	case bytes.HasPrefix(head, []byte("\xd0\xcf\x11\xe0")) || bytes.HasPrefix(head, []byte("!BDN")):
		return kindOutlook
	case len(head) > 262 && string(head[257:262]) == "ustar": // tar
		return kindUnknown
	case p == placeNamed || looksLikeMessage(head):
		return kindMessage
	}
	return kindUnknown
}

// looksLikeMessage reports whether text begins with header fields, one of
// which nearly every message has and hardly anything else.
func looksLikeMessage(head []byte) bool {
	for line := range bytes.Lines(head) {
		name, _, ok := bytes.Cut(line, []byte{':'})
		switch {
		case line[0] == ' ' || line[0] == '\t':
			continue
		case !ok || bytes.ContainsAny(name, " \t\r\n\x00"):
			return false
		}
		switch strings.ToLower(string(name)) {
		case "from", "date", "subject", "message-id", "received", "return-path", "mime-version", "delivered-to":
			return true
		}
	}
	return false
}

// gzipFile closes the file below the decompressor as well.
type gzipFile struct {
	*gzip.Reader
	file *os.File
}

func openGzip(name string) (io.ReadCloser, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(bufio.NewReader(f))
	if err != nil {
		f.Close()
		return nil, err
	}
	return &gzipFile{z, f}, nil
}

func (g *gzipFile) Close() error { return errors.Join(g.Reader.Close(), g.file.Close()) }
