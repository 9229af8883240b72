package load

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

// shelf is an archive of what tests put there.
type shelf struct {
	bodies   map[string][]byte
	receipts map[string]int
	torn     map[string]bool // reading ends in an error
	down     error           // every question fails
}

func (s *shelf) Receipts(_ context.Context, id string) (int, error) { return s.receipts[id], s.down }

func (s *shelf) Raw(_ context.Context, id string) (io.ReadCloser, error) {
	var r io.Reader = bytes.NewReader(s.bodies[id])
	if s.torn[id] {
		r = io.MultiReader(r, iotest.ErrReader(io.ErrUnexpectedEOF))
	}
	return io.NopCloser(r), nil
}

// shelfOf holds messages 0 to n-1 of seed 1, and returns their hashes too.
func shelfOf(n int) (*shelf, []string) {
	s := &shelf{map[string][]byte{}, map[string]int{}, map[string]bool{}, nil}
	var ids []string
	for i := range n {
		m := Message(1, int64(i), 3000)
		sum := sha256.Sum256(m)
		id := hex.EncodeToString(sum[:])
		ids = append(ids, id)
		s.bodies[id], s.receipts[id] = m, 1
	}
	return s, ids
}

func check(t *testing.T, s *shelf, list string) CheckReport {
	t.Helper()
	r, err := Check(t.Context(), strings.NewReader(list), s, CheckOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestCheckFindsNothingWrong(t *testing.T) {
	s, ids := shelfOf(100)
	s.receipts[ids[5]] = 2                                             // and acknowledged twice
	list := strings.Join(ids, "\n") + "\n" + ids[5] + "\n" + "0123abc" // the last line is torn
	r := check(t, s, list)
	if !r.OK() || r.Checked != 100 || r.Acked != 101 || r.Bytes != 300_000 {
		t.Errorf("%+v", r)
	}
	if !strings.Contains(r.String(), "every acknowledged message is there") {
		t.Error(r)
	}
}

func TestCheckNamesEveryFault(t *testing.T) {
	s, ids := shelfOf(100)
	delete(s.receipts, ids[1])
	s.bodies[ids[2]] = append([]byte(nil), s.bodies[ids[2]]...)
	s.bodies[ids[2]][1500] ^= 1
	s.bodies[ids[3]] = s.bodies[ids[3]][:2999]
	s.torn[ids[4]] = true
	s.receipts[ids[5]] = 2
	s.receipts[ids[6]] = 1 // but acknowledged twice

	r := check(t, s, strings.Join(ids, "\n")+"\n"+ids[6]+"\n")
	if r.OK() {
		t.Error("the report says all is well")
	}
	for name, got := range map[string]struct{ got, want []string }{
		"missing":    {r.Missing, []string{ids[1], ids[6]}},
		"altered":    {r.Altered, []string{ids[2], ids[3]}},
		"unreadable": {r.Unreadable, []string{ids[4]}},
		"duplicated": {r.Duplicated, []string{ids[5]}},
	} {
		if !reflect.DeepEqual(set(got.got), set(got.want)) {
			t.Errorf("%s: %v, want %v", name, got.got, got.want)
		}
		if !strings.Contains(r.String(), name) || !strings.Contains(r.String(), got.want[0]) {
			t.Errorf("the printed report lacks %s %s", name, got.want[0])
		}
	}
	if r.Reason != io.ErrUnexpectedEOF.Error() {
		t.Errorf("reason %q", r.Reason)
	}
}

func set(ids []string) map[string]bool {
	m := map[string]bool{}
	for _, id := range ids {
		m[id] = true
	}
	return m
}

// A node that is down is no missing mail.
func TestCheckFailsWhenTheArchiveCannotBeAsked(t *testing.T) {
	s, ids := shelfOf(100)
	s.down = errors.New("connection refused")
	r, err := Check(t.Context(), strings.NewReader(strings.Join(ids, "\n")+"\n"), s, CheckOptions{})
	if !errors.Is(err, s.down) || len(r.Missing) > 0 {
		t.Errorf("error %v, %+v", err, r)
	}
}

func TestCheckRefusesAListThatIsNone(t *testing.T) {
	s, ids := shelfOf(2)
	_, err := Check(t.Context(), strings.NewReader(ids[0]+"\nhello\n"+ids[1]+"\n"), s, CheckOptions{})
	if err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("error %v", err)
	}
}
