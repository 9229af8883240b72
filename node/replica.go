package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"chainmail/archive"
	"chainmail/archive/record"
	"chainmail/chain"
)

// replica gives the chain the archive in the chain's own words.
type replica struct {
	*archive.Archive
}

func (r replica) Export(p record.Position) (chain.Exported, error) {
	e, err := r.Archive.Export(p)
	return chain.Exported{Receipt: e.Receipt, Encoded: e.Encoded, BodyAt: e.BodyAt}, inChainWords(err)
}

func (r replica) Chunks(s record.StoreID, b record.BodyNo, f func([]byte) error) error {
	return inChainWords(r.Archive.Chunks(s, b, f))
}

func (r replica) NewIntake(ctx context.Context, peer string) chain.Intake {
	return intake{r.Archive.NewIntake(ctx, peer)}
}

func (r replica) Weigh(s record.StoreID, span record.Range) (bytes int64, oldest time.Time, err error) {
	l, _ := r.Archive.Log(s)
	held := l.Held.Intersect(record.Ranges{span})
	if len(held) == 0 {
		return 0, oldest, nil
	}
	bytes, _, err = r.Archive.Sizes(s, held, int(held.Count()))
	if err == nil {
		oldest, err = r.Archive.ReceivedAt(record.Position{Store: s, Seq: held.First()})
	}
	return bytes, oldest, inChainWords(err)
}

type intake struct{ *archive.Intake }

func (i intake) Log(l record.Log) error { return inChainWords(i.Intake.Log(l)) }

func (i intake) Receipt(p record.Position, encoded []byte, hasBody bool) (bool, error) {
	want, err := i.Intake.Receipt(p, encoded, hasBody)
	return want, inChainWords(err)
}

func (i intake) Chunk(stored []byte) error { return inChainWords(i.Intake.Chunk(stored)) }

func (i intake) Enter() error { return inChainWords(i.Intake.Enter()) }

func (i intake) Sync() ([]record.StoreID, error) {
	touched, err := i.Intake.Sync()
	return touched, inChainWords(err)
}

// inChainWords puts the chain's sentinel before an error of the archive.
func inChainWords(err error) error {
	for _, w := range []struct{ archive, chain error }{
		{archive.ErrDiskFull, chain.ErrFull},
		{archive.ErrBusy, chain.ErrBusy},
		{archive.ErrCorrupt, chain.ErrCorrupt},
		{archive.ErrNoBody, chain.ErrNoBody},
		{archive.ErrNotFound, chain.ErrNotHeld},
	} {
		if errors.Is(err, w.archive) {
			return fmt.Errorf("%w: %w", w.chain, err)
		}
	}
	return err
}
