package mailbox

import (
	"archive/zip"
	"fmt"
	"io"
	"path"
	"strings"
)

// zip yields the EML files in a zip file, a Sink's or anybody's. Names in it
// are only labels: nothing is unpacked to disk.
func (s *source) zip(name string) bool {
	z, err := zip.OpenReader(name)
	if err != nil {
		return s.fail(name, fmt.Errorf("%s: %w", name, err))
	}
	defer z.Close()
	for _, f := range z.File {
		label := name + "#" + f.Name
		ok := true
		switch {
		case strings.HasSuffix(strings.ToLower(f.Name), ".eml"):
			ok = s.yield(Item{Name: label, Size: int64(f.CompressedSize64), open: func() (io.ReadCloser, error) { return f.Open() }}, nil)
		case strings.HasSuffix(f.Name, "/") || path.Base(f.Name) == manifestName:
		default:
			ok = s.skip(label, "only .eml files are read from a zip file; unpack it to import others")
		}
		if !ok {
			return false
		}
	}
	return true
}
