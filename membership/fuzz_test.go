package membership

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chainmail/node/api"
)

func FuzzToken(f *testing.F) {
	f.Add(newSecret(sha256.Sum256(nil)).Text(api.JoinTokenPrefix))
	f.Add(api.JoinTokenPrefix)
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		token, err := parseToken(s)
		if err == nil && token.Text(api.JoinTokenPrefix) != strings.TrimSpace(s) {
			t.Errorf("%q is read as %q", s, token)
		}
	})
}

// FuzzCommand: whatever a log holds, applying it neither panics nor leads to a
// state that could not be read again.
func FuzzCommand(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if text, ok := strings.CutPrefix(line, "> "); ok {
				f.Add([]byte(text))
			}
		}
	}
	start := startState()
	start, _ = start.apply(command{ID: "token", Token: &addToken{Hash: "t1"}})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeCommand(b)
		if err != nil {
			return
		}
		again, err := encodeCommand(c)
		if err != nil {
			t.Fatal(err)
		}
		if c2, err := decodeCommand(again); err != nil || mustJSON(c2) != mustJSON(c) {
			t.Errorf("%s does not survive encoding: %v", b, err)
		}
		s, r := start.apply(c)
		if s.View.Epoch < start.View.Epoch || r.Refused != nil && s.View.Epoch != start.View.Epoch {
			t.Errorf("epoch %d after %d, %+v", s.View.Epoch, start.View.Epoch, r)
		}
		out, err := encodeState(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeState(out); err != nil {
			t.Errorf("%s leads to a state that cannot be read: %v", b, err)
		}
	})
}

func FuzzState(f *testing.F) {
	b, err := encodeState(startState())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte(`{"format":1,"state":{"view":{"cluster":"x","epoch":1}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeState(b)
		if err != nil {
			return
		}
		out, err := encodeState(s)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := decodeState(out); err != nil || mustJSON(again) != mustJSON(s) {
			t.Errorf("does not survive encoding: %v", err)
		}
	})
}

func FuzzControl(f *testing.F) {
	for _, q := range []controlRequest{
		{Change: &command{ID: "1", Move: &move{"a", "b"}}},
		{Join: &api.JoinRequest{Token: "t", Name: "b"}},
		{Renew: &renewRequest{CSR: []byte{1}, InUse: "x"}},
		{},
	} {
		var b bytes.Buffer
		if err := writeControl(&b, q); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add(binary.BigEndian.AppendUint32(nil, maxRequest+1))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := readRequest(bytes.NewReader(b))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := writeControl(&out, q); err != nil {
			t.Fatal(err)
		}
		if again, err := readRequest(&out); err != nil || mustJSON(again) != mustJSON(q) {
			t.Errorf("does not survive encoding: %v", err)
		}
	})
}

func FuzzMeta(f *testing.F) {
	f.Add([]byte(`{"crc32c":0,"content":{}}`))
	f.Add([]byte(`{"crc32c":1,"content":{"stable":{"x":"AA=="}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeMeta(b)
		if err == nil {
			if _, err := json.Marshal(c); err != nil {
				t.Error(err)
			}
		}
	})
}

func FuzzIdentity(f *testing.F) {
	ca, err := newAuthority("x")
	if err != nil {
		f.Fatal(err)
	}
	key, err := newKey()
	if err != nil {
		f.Fatal(err)
	}
	csr, err := newCSR(key, "a")
	if err != nil {
		f.Fatal(err)
	}
	leaf, err := ca.sign(csr, "a", "1", 7)
	if err != nil {
		f.Fatal(err)
	}
	pem, err := encodeIdentity(leaf, ca.Certificate, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pem)
	f.Fuzz(func(t *testing.T, b []byte) {
		if id, err := decodeIdentity(b); err == nil && (id.fingerprint() == "" || id.tls.PrivateKey == nil) {
			t.Error("half an identity")
		}
	})
}
