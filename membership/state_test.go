package membership

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chainmail/membership/ring"
)

var updateGolden = flag.Bool("update", false, "write the transcripts of testdata anew")

// describe prints what a transcript shows of a state.
func describe(s state) string {
	var b strings.Builder
	fmt.Fprintf(&b, "  epoch %d keys %d %s", s.View.Epoch, len(s.Gossip.Keys), s.Gossip.Phase)
	if s.Renew > 0 {
		fmt.Fprintf(&b, " renew %d", s.Renew)
	}
	p := s.View.Policies
	fmt.Fprintf(&b, " copies %d replicas %d %s", p.Copies, p.Replicas, p.WhenShort)
	if len(p.Balancers) > 0 {
		fmt.Fprintf(&b, " balancers %s", strings.Join(p.Balancers, " "))
	}
	fmt.Fprintln(&b)
	for _, m := range s.View.Members {
		fmt.Fprintf(&b, "  %s id %s %s %s certificates %s\n", m.Name, m.ID, m.Role, m.State, strings.Join(m.Certificates, " "))
	}
	for _, t := range s.Tokens {
		fmt.Fprintf(&b, "  token %s expires %s used %q\n", t.Hash, t.Expires.Format(time.RFC3339), t.Name)
	}
	for _, t := range s.APITokens {
		fmt.Fprintf(&b, "  API token %s %s %q made %s expires %s\n", t.ID, t.Scope, t.Name, t.Created.Format(time.DateOnly), t.Expires.Format(time.DateOnly))
	}
	return b.String()
}

// startState is where every transcript begins: a cluster of a.
func startState() state {
	ca, err := newAuthority("c0ffee")
	if err != nil {
		panic(err)
	}
	return state{
		View: ring.View{
			Cluster: "c0ffee", Epoch: 1, Policies: ring.DefaultPolicies(),
			Members: []ring.Member{{Name: "a", ID: "1", Role: ring.Data, State: ring.Active, Certificates: []string{"cert-a"}}},
		},
		CA:     ca,
		Gossip: gossipKeys{Keys: [][]byte{bytes.Repeat([]byte{1}, 32)}, Phase: steady, Since: 1},
	}
}

// TestTranscripts replays commands from testdata/*.txt: "> {JSON}" is a
// command, what follows is the result and the state.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no transcripts", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := replay(t, want)
			if *updateGolden {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(want) {
				t.Errorf("differs (-update writes it anew):\n%s", got)
			}
		})
	}
}

func replay(t *testing.T, transcript []byte) string {
	var out strings.Builder
	s := startState()
	for lines := bufio.NewScanner(bytes.NewReader(transcript)); lines.Scan(); {
		line := lines.Text()
		if strings.HasPrefix(line, "#") {
			fmt.Fprintln(&out, line)
		}
		text, ok := strings.CutPrefix(line, "> ")
		if !ok {
			continue
		}
		fmt.Fprintln(&out, line)
		c, err := decodeCommand([]byte(text))
		if err != nil {
			fmt.Fprintf(&out, "  not understood: %v\n\n", err)
			continue
		}
		before, err := encodeState(s)
		if err != nil {
			t.Fatal(err)
		}
		next, r := s.apply(c)
		if after, _ := encodeState(s); !bytes.Equal(before, after) {
			t.Errorf("%s changed the state that it was applied to", line)
		}
		if again, r2 := s.apply(c); mustJSON(again) != mustJSON(next) || mustJSON(r2) != mustJSON(r) {
			t.Errorf("%s comes out differently the second time", line)
		}
		if next.View.Epoch < s.View.Epoch {
			t.Errorf("%s: the epoch goes back", line)
		}
		s = next
		if r.Refused != nil {
			fmt.Fprintf(&out, "  refused (%s): %s\n\n", r.Refused.Reason, r.Refused.Text)
			continue
		}
		fmt.Fprintf(&out, "%s\n", describe(s))
	}
	return out.String()
}

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// TestChangeIsMadeOnce: the same ID again has the same result, whatever came
// between.
func TestChangeIsMadeOnce(t *testing.T) {
	s := startState()
	n := 1
	once := command{ID: "x", Policies: &setPolicies{Copies: &n}}
	s, r1 := s.apply(once)
	m := 3
	s, _ = s.apply(command{ID: "y", Policies: &setPolicies{Copies: &m}})
	s, r2 := s.apply(once)
	if mustJSON(r1) != mustJSON(r2) || s.View.Policies.Copies != 3 || s.View.Epoch != 3 {
		t.Errorf("%+v, %+v, %+v", r1, r2, s.View)
	}
	for i := range 2 * maxDone {
		s, _ = s.apply(command{ID: fmt.Sprint(i), Policies: &setPolicies{Copies: &m}})
		s.addToken(addToken{Hash: fmt.Sprint(i), Expires: time.Unix(0, 0)}, time.Unix(0, 0))
	}
	if len(s.Done) != maxDone || len(s.Tokens) != maxTokens {
		t.Errorf("remembers %d changes and %d tokens", len(s.Done), len(s.Tokens))
	}
	s.addToken(addToken{Hash: "late"}, time.Unix(0, 0).Add(keepToken+time.Second))
	if len(s.Tokens) != 1 {
		t.Errorf("keeps %d tokens that expired long ago", len(s.Tokens))
	}
}
