package local

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"chainmail/membership"
	"chainmail/membership/ring"
)

// removedMark is the file that a node leaves in its cluster directory when it
// learns that it was removed.
const removedMark = "removed"

// plan is what is to be done with the nodes of a directory.
type plan struct {
	members []string // have data, and start
	left    []string // have data, and are members no more
	fresh   []string // join
}

// makePlan looks into a directory, which need not exist. Nodes that left count
// for those that are wanted: who drained one does not want another in its place.
func makePlan(dir string, nodes int) (plan, error) {
	held, err := known(dir)
	if err != nil {
		return plan{}, err
	}
	views := readViews(dir, held)
	if err := oneCluster(dir, held, views); err != nil {
		return plan{}, err
	}
	var p plan
	for _, name := range held {
		if hasLeft(dir, name, views) {
			p.left = append(p.left, name)
		} else {
			p.members = append(p.members, name)
		}
	}
	if len(held) > 0 && len(p.members) == 0 {
		return plan{}, fmt.Errorf("%s holds only nodes that have left their cluster (%s): give another --dir", dir, strings.Join(held, ", "))
	}
	for i := 0; i < maxNodes && len(held)+len(p.fresh) < nodes; i++ {
		if name := Name(i); !slices.Contains(held, name) {
			p.fresh = append(p.fresh, name)
		}
	}
	return p, nil
}

// all are those that run, in order.
func (p plan) all() []string { return slices.Sorted(slices.Values(slices.Concat(p.members, p.fresh))) }

// hosts is how many the nodes need that are numbered by their letters.
func (p plan) hosts() int {
	all := p.all()
	return Index(all[len(all)-1]) + 1
}

// say tells what the plan is.
func (p plan) say(dir string, nodes int) string {
	var b strings.Builder
	for _, name := range p.left {
		b.WriteString(leftLine(dir, name))
	}
	if n := len(p.members); n > nodes {
		fmt.Fprintf(&b, "%s holds %s: starting %s.\n", dir, strings.Join(p.members, ", "), allOf(n))
	} else {
		fmt.Fprintf(&b, "Starting %s in %s.\n", strings.Join(p.all(), ", "), dir)
	}
	return b.String()
}

func leftLine(dir, name string) string {
	return fmt.Sprintf("%s has left this cluster; its mail stays in %s.\n", name, filepath.Join(dir, name))
}

// allOf is how people say it, of two or more.
func allOf(n int) string {
	words := []string{2: "both", 3: "all three", 4: "all four", 5: "all five", 6: "all six", 7: "all seven", 8: "all eight", 9: "all nine"}
	if n < len(words) {
		return words[n]
	}
	return fmt.Sprintf("all %d", n)
}

func clusterDir(dir, name string) string { return filepath.Join(dir, name, "cluster") }

// known names the nodes of a directory that have joined a cluster, in order.
func known(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if name := e.Name(); e.IsDir() && Index(name) >= 0 && membership.Exists(clusterDir(dir, name)) {
			names = append(names, name)
		}
	}
	return names, err
}

// readViews are what nodes last knew of their cluster. One that cannot be read is
// left out: its node says why when it starts.
func readViews(dir string, names []string) map[string]ring.View {
	views := map[string]ring.View{}
	for _, name := range names {
		if v, err := membership.ReadView(clusterDir(dir, name)); err == nil {
			views[name] = v
		}
	}
	return views
}

// oneCluster refuses nodes that do not belong together.
func oneCluster(dir string, names []string, views map[string]ring.View) error {
	var clusters, parts []string
	of := map[string][]string{}
	for _, name := range names {
		v, ok := views[name]
		if !ok {
			continue
		}
		if of[v.Cluster] == nil {
			clusters = append(clusters, v.Cluster)
		}
		of[v.Cluster] = append(of[v.Cluster], name)
	}
	if len(clusters) < 2 {
		return nil
	}
	for _, c := range clusters {
		parts = append(parts, strings.Join(of[c], ", ")+" of "+c)
	}
	return fmt.Errorf("%s holds nodes of different clusters: %s: move those of all but one elsewhere, or give another --dir", dir, strings.Join(parts, "; "))
}

// hasLeft reports whether a node was drained or removed: it has noted that
// itself, or whoever knows most of the cluster does not know it. A directory
// that holds a node of another name did not leave; its start says what is wrong.
func hasLeft(dir, name string, views map[string]ring.View) bool {
	if _, err := os.Stat(filepath.Join(clusterDir(dir, name), removedMark)); err == nil {
		return true
	}
	var newest ring.View
	for _, v := range views {
		if v.Epoch > newest.Epoch {
			newest = v
		}
	}
	if _, in := newest.Member(name); in || newest.Epoch == 0 {
		return false
	}
	file := filepath.Join(clusterDir(dir, name), "node.pem")
	pair, err := tls.LoadX509KeyPair(file, file)
	return err == nil && pair.Leaf.Subject.CommonName == name
}
