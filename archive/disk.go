package archive

import (
	"math/rand/v2"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// Disk is a disk for tests of durability: it lives in memory, keeps apart what
// was synced from what was only written, can lose power at any moment and can
// fail at any operation.
type Disk struct {
	mem   *vfs.MemFS
	fault atomic.Pointer[func(Op) error]
}

// Op is an operation on a Disk, before it happens.
type Op struct {
	Kind OpKind
	Path string
}

// OpKind is what an operation does.
type OpKind int

const (
	OpOther OpKind = iota // opening, listing, renaming, removing …
	OpRead
	OpWrite
	OpSync
)

// NewDisk gives an empty disk.
func NewDisk() *Disk { return &Disk{mem: vfs.NewCrashableMem()} }

// OnOp calls f before every operation from now on; an error fails the
// operation. f may call Crash: the operation has not happened yet.
func (d *Disk) OnOp(f func(Op) error) { d.fault.Store(&f) }

// Crash is what a power cut at this moment leaves: all that was synced, and
// of the rest each block with a probability of percent, drawn from seed.
func (d *Disk) Crash(percent int, seed uint64) *Disk {
	return &Disk{mem: d.mem.CrashClone(vfs.CrashCloneCfg{
		UnsyncedDataPercent: percent,
		RNG:                 rand.New(rand.NewPCG(seed, seed)),
	})}
}

func (d *Disk) fs() vfs.FS {
	return errorfs.Wrap(d.mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if f := d.fault.Load(); f != nil {
			return (*f)(Op{opKind(op.Kind), op.Path})
		}
		return nil
	}))
}

func opKind(k errorfs.OpKind) OpKind {
	switch k {
	case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo:
		return OpSync
	case errorfs.OpFileWrite, errorfs.OpFileWriteAt, errorfs.OpFilePreallocate:
		return OpWrite
	case errorfs.OpFileRead, errorfs.OpFileReadAt:
		return OpRead
	}
	return OpOther
}
