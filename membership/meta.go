package membership

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/hashicorp/raft-wal/types"
)

// metaFile keeps the small mutable part of Raft's log: which segments there
// are, the term and the vote. It is one JSON file, replaced as a whole, instead
// of the library's memory-mapped database: that one ends the process when its
// file is damaged, and mail must flow then too. Changes are as rare as
// elections.
type metaFile struct {
	mu      sync.Mutex
	path    string
	content metaContent
}

type metaContent struct {
	Segments types.PersistentState `json:"segments"`
	Stable   map[string][]byte     `json:"stable"`
}

// metaEnvelope guards the content by a checksum.
type metaEnvelope struct {
	CRC     uint32          `json:"crc32c"`
	Content json.RawMessage `json:"content"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Load reads the file; a missing one is an empty log.
func (m *metaFile) Load(dir string) (types.PersistentState, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.path = filepath.Join(dir, "meta.json")
	m.content = metaContent{Stable: map[string][]byte{}}
	b, err := os.ReadFile(m.path)
	if errors.Is(err, fs.ErrNotExist) {
		return types.PersistentState{}, nil
	}
	if err != nil {
		return types.PersistentState{}, err
	}
	if m.content, err = decodeMeta(b); err != nil {
		return types.PersistentState{}, fmt.Errorf("%w: %s: %v", types.ErrCorrupt, m.path, err) //nolint:errorlint // the cause is for people
	}
	return m.content.Segments, nil
}

func decodeMeta(b []byte) (metaContent, error) {
	var e metaEnvelope
	if err := json.Unmarshal(b, &e); err != nil {
		return metaContent{}, err
	}
	if crc32.Checksum(e.Content, castagnoli) != e.CRC {
		return metaContent{}, errors.New("its checksum does not fit")
	}
	c := metaContent{Stable: map[string][]byte{}}
	err := json.Unmarshal(e.Content, &c)
	return c, err
}

// save writes changed content and keeps it when that worked.
func (m *metaFile) save(c metaContent) error {
	content, err := json.Marshal(c)
	if err != nil {
		return err
	}
	b, err := json.Marshal(metaEnvelope{crc32.Checksum(content, castagnoli), content})
	if err != nil {
		return err
	}
	if err := writeFile(m.path, b); err != nil {
		return err
	}
	m.content = c
	return nil
}

// CommitState replaces the list of segments.
func (m *metaFile) CommitState(s types.PersistentState) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.content
	c.Segments = s
	return m.save(c)
}

// GetStable returns a value, or nil.
func (m *metaFile) GetStable(key []byte) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.content.Stable[string(key)], nil
}

// SetStable stores a value.
func (m *metaFile) SetStable(key, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.content
	c.Stable = map[string][]byte{string(key): append([]byte{}, value...)}
	for k, v := range m.content.Stable {
		if k != string(key) {
			c.Stable[k] = v
		}
	}
	return m.save(c)
}

// Close does nothing: every change is on the disk already.
func (m *metaFile) Close() error { return nil }
