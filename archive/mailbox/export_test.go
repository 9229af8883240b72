package mailbox

import (
	"bytes"
	"io"
)

// The fuzz tests read and write mbox files in memory: on disk they would run a
// hundredth as often.

func WriteMbox(w io.Writer, m Meta, r io.Reader) error { return writeMbox(w, m, r) }

func ReadMbox(text []byte, variant Mbox) (messages [][]byte, err error) {
	file := bytes.NewReader(text)
	splitErr := splitMbox(file, file.Size(), variant, func(m span) bool {
		var b []byte
		b, err = io.ReadAll(m.read(file, variant))
		messages = append(messages, b)
		return err == nil
	})
	if splitErr != nil {
		return messages, splitErr
	}
	return messages, err
}
