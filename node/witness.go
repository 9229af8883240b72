package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"chainmail/archive"
	"chainmail/archive/record"
)

// emptyArchive is what a witness shows of mail: nothing.
type emptyArchive struct{}

var errWitness = fmt.Errorf("a witness keeps no mail: ask another member: %w", archive.ErrNotFound)

func (emptyArchive) Resolve(string) ([]record.Hash, error)                { return nil, errWitness }
func (emptyArchive) Message(record.Hash) (record.Message, error)          { return record.Message{}, errWitness }
func (emptyArchive) Body(record.Hash) (io.ReadCloser, error)              { return nil, errWitness }
func (emptyArchive) Verify(context.Context, func(archive.Progress)) error { return nil }
func (emptyArchive) Stats() archive.Stats                                 { return archive.Stats{} }

func (emptyArchive) Messages(context.Context, archive.Query) iter.Seq2[record.Message, error] {
	return func(func(record.Message, error) bool) {}
}

var errWitnessImport = errors.New("a witness keeps no mail: import on another member")
