package local

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"chainmail/membership"
)

// found makes the data of nodes, each of a cluster of its own. Their names are
// those of their directories, or stand behind a colon.
func found(t *testing.T, dir string, nodes ...string) {
	t.Helper()
	for _, node := range nodes {
		in, name, other := strings.Cut(node, ":")
		if !other {
			name = in
		}
		if err := os.MkdirAll(filepath.Join(dir, in), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := membership.Create(clusterDir(dir, in), membership.CreateOptions{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
}

// unite lets a node know a cluster with these members at an epoch.
func unite(t *testing.T, dir, node string, epoch int, members ...string) {
	t.Helper()
	file := filepath.Join(clusterDir(dir, node), "view.json")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var content map[string]any
	if err := json.Unmarshal(b, &content); err != nil {
		t.Fatal(err)
	}
	view := content["state"].(map[string]any)["view"].(map[string]any)
	one := view["members"].([]any)[0].(map[string]any)
	var all []any
	for _, name := range members {
		m := map[string]any{}
		for k, v := range one {
			m[k] = v
		}
		m["name"], m["id"] = name, "the ID of "+name
		all = append(all, m)
	}
	view["cluster"], view["epoch"], view["members"] = "theirs", epoch, all
	if b, err = json.Marshal(content); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := membership.ReadView(clusterDir(dir, node)); err != nil {
		t.Fatal(err)
	}
}

// TestPlan: which of the nodes of a directory start, which do not any more, and
// which join.
func TestPlan(t *testing.T) {
	type knows struct {
		node    string
		epoch   int
		members string
	}
	for _, tt := range []struct {
		name  string
		knows []knows
		mark  string // who has noted that it was removed
		nodes int
		want  plan
		says  string
	}{
		{
			"nothing there", nil, "", 2,
			plan{fresh: []string{"a", "b"}},
			"Starting a, b in DIR.\n",
		},
		{
			"as many as wanted",
			[]knows{{"a", 5, "a b"}, {"b", 5, "a b"}},
			"", 2,
			plan{members: []string{"a", "b"}},
			"Starting a, b in DIR.\n",
		},
		{
			"more",
			[]knows{{"a", 5, "a b c d"}, {"b", 5, "a b c d"}, {"c", 5, "a b c d"}, {"d", 5, "a b c d"}},
			"", 3,
			plan{members: []string{"a", "b", "c", "d"}},
			"DIR holds a, b, c, d: starting all four.\n",
		},
		{
			"fewer, with a gap",
			[]knows{{"b", 5, "b d"}, {"d", 5, "b d"}},
			"", 4,
			plan{members: []string{"b", "d"}, fresh: []string{"a", "c"}},
			"Starting a, b, c, d in DIR.\n",
		},
		{
			"a gap, more than wanted",
			[]knows{{"a", 5, "a c"}, {"c", 5, "a c"}},
			"", 1,
			plan{members: []string{"a", "c"}},
			"DIR holds a, c: starting both.\n",
		},
		{
			"drained: the newest view counts",
			[]knows{{"a", 4, "a b c"}, {"b", 6, "a b"}, {"c", 5, "a b c"}},
			"", 3,
			plan{members: []string{"a", "b"}, left: []string{"c"}},
			"c has left this cluster; its mail stays in DIR/c.\nStarting a, b in DIR.\n",
		},
		{
			"the newest view is that of who joined last",
			[]knows{{"a", 4, "a b"}, {"b", 4, "a b"}, {"c", 6, "a b c"}},
			"", 2,
			plan{members: []string{"a", "b", "c"}},
			"DIR holds a, b, c: starting all three.\n",
		},
		{
			"a is gone",
			[]knows{{"a", 5, "a b"}, {"b", 6, "b"}},
			"", 3,
			plan{members: []string{"b"}, left: []string{"a"}, fresh: []string{"c"}},
			"a has left this cluster; its mail stays in DIR/a.\nStarting b, c in DIR.\n",
		},
		{
			"removed, as it knows itself",
			[]knows{{"a", 5, "a b"}, {"b", 5, "a b"}},
			"b", 2,
			plan{members: []string{"a"}, left: []string{"b"}},
			"b has left this cluster; its mail stays in DIR/b.\nStarting a in DIR.\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, k := range tt.knows {
				found(t, dir, k.node)
				unite(t, dir, k.node, k.epoch, strings.Fields(k.members)...)
			}
			if tt.mark != "" {
				if err := os.WriteFile(filepath.Join(clusterDir(dir, tt.mark), removedMark), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := makePlan(dir, tt.nodes)
			if err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Fatalf("plan %+v, %v; want %+v", got, err, tt.want)
			}
			if said := strings.ReplaceAll(got.say(dir, tt.nodes), dir, "DIR"); said != tt.says {
				t.Errorf("it says\n%s\nwant\n%s", said, tt.says)
			}
		})
	}
}

// TestPlanOfBrokenNodes: only their start can tell what is wrong with them.
func TestPlanOfBrokenNodes(t *testing.T) {
	dir := t.TempDir()
	found(t, dir, "a", "b:x", "c")
	unite(t, dir, "a", 5, "a", "c", "x")
	unite(t, dir, "b", 5, "a", "c", "x")
	if err := os.WriteFile(filepath.Join(clusterDir(dir, "c"), "view.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	// An attempt to join that was interrupted is no membership.
	if err := os.MkdirAll(clusterDir(dir, "d")+".join", 0o700); err != nil {
		t.Fatal(err)
	}
	want := plan{members: []string{"a", "b", "c"}, fresh: []string{"d"}}
	if got, err := makePlan(dir, 4); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("plan %+v, %v; want %+v", got, err, want)
	}
}

// TestRunRefuses: nothing is started, and nothing is said of stopping and of
// data.
func TestRunRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(dir string)
		want string
	}{
		{"nodes of different clusters", func(dir string) { found(t, dir, "a", "d") }, "DIR holds nodes of different clusters: a of "},
		{"nobody is a member", func(dir string) {
			found(t, dir, "a", "b")
			unite(t, dir, "a", 5, "z")
			unite(t, dir, "b", 5, "z")
		}, "DIR holds only nodes that have left their cluster (a, b): give another --dir"},
		{"other addresses", func(dir string) {
			found(t, dir, "a")
			if err := os.WriteFile(filepath.Join(dir, "addresses"), []byte("127.0.0.1:9\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "know node a at 127.0.0.1:9, and now it would be 127.0.0.1:65530: give the same --mode and --base-port"},
		{"no such ports", func(string) {}, "choose one up to 65521"},
		{"no such ports, without --dir", nil, "choose one up to 65521"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, temp := "", t.TempDir()
			t.Setenv("TMPDIR", temp)
			if tt.make != nil {
				dir = t.TempDir()
				tt.make(dir)
			}
			var out bytes.Buffer
			err := Run(t.Context(), RunOptions{Nodes: 2, Dir: dir, BasePort: 65530, Program: "/bin/false", Out: &out})
			if err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), dir, "DIR"), tt.want) && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v", err)
			}
			if out.Len() > 0 {
				t.Errorf("it says\n%s", &out)
			}
			if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

// TestRunThatFails: what a node said when it ended, where the rest is, and no
// word of stopping: nobody runs.
func TestRunThatFails(t *testing.T) {
	base, err := FreeBasePort(2)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var out bytes.Buffer
	program := stub(t, "echo a long story; echo 'chainmail: no good' >&2; exit 3")
	err = Run(t.Context(), RunOptions{Nodes: 2, Dir: dir, BasePort: base, Program: program, Out: &out})
	if err == nil || err.Error() != "node a: it ended at once (exit status 3): no good" {
		t.Errorf("got %v", err)
	}
	want := "Starting a, b in DIR.\nThe data is kept in DIR, and what the nodes said in DIR/*.log.\n"
	if got := strings.ReplaceAll(out.String(), dir, "DIR"); got != want {
		t.Errorf("it says\n%s\nwant\n%s", got, want)
	}
}

func TestLastWords(t *testing.T) {
	long := strings.Repeat("é", wordsLine)
	for _, tt := range []struct{ before, log, want string }{
		{"", "", ""},
		{"chainmail: of an earlier run\n", "", ""},
		{"chainmail: of an earlier run\n", "level=INFO msg=one\nlevel=WARN msg=two\n\n", ": level=WARN msg=two"},
		{"", "level=INFO msg=one\nchainmail: it is broken: mend it\nmore\n", ": it is broken: mend it"},
		{"", "chainmail: config: one\nchainmail: config: two\n", ": config: one; config: two"},
		{"", "panic: oh\n\ngoroutine 1 [running]:\nmain.main()\n\tmain.go:1 +0x1d\n", ": panic: oh"},
		{"", strings.Repeat("level=INFO msg=much\n", wordsTail) + "chainmail: end", ": end"},
		{"", long, ": " + strings.Repeat("é", wordsLine/2) + "…"},
	} {
		file := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(file, []byte(tt.before+tt.log), 0o600); err != nil {
			t.Fatal(err)
		}
		log, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := lastWords(log, int64(len(tt.before))); got != tt.want {
			t.Errorf("of %.80q: %q, want %q", tt.log, got, tt.want)
		}
		log.Close()
	}
}

// TestDirectoriesAreEntered: the balancer's workers pass through, and nobody
// reads on the way, whatever the umask is.
func TestDirectoriesAreEntered(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	processes(t, Options{Program: "chainmail", Dir: dir})
	r := &run{}
	t.Setenv("TMPDIR", t.TempDir())
	if err := r.makeTemp(); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dir, r.Dir} {
		if info, err := os.Stat(d); err != nil || info.Mode().Perm() != 0o711 {
			t.Errorf("%s: %v, %v", d, info.Mode(), err)
		}
	}
}
