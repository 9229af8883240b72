package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "chainmail"

// layers is the house of docs/design.md: a package may import packages of
// lower layers only, so those of one layer never import one another. A new
// package needs a place here.
var layers = map[string]int{
	"archive/record":  0,
	"membership/ring": 0,
	"node/api":        0,
	"node/certs":      0,

	"archive/mail/mailtest": 0, // mail for tests
	"testcluster/netsim":    0, // a network for tests

	"archive":         1,
	"archive/mail":    1,
	"archive/mailbox": 1,
	"chain":           1,
	"chain/route":     1,
	"membership":      1,
	"lb":              1,

	"node/smtpd":  2,
	"node/httpd":  2,
	"node/client": 2,

	"testcluster/netns": 2, // hosts of network namespaces, for tests

	"node":              3,
	"testcluster/local": 3, // runs nodes as processes
	"testcluster/load":  3, // knows a node by its protocols only; the command load starts it

	"cmd/chainmail":            4,
	"testcluster":              4,
	"testcluster/peerbench":    4,
	"testcluster/support":      4,
	"testcluster/machine":      3, // what this machine is and does, for measurements
	"testcluster/clusterbench": 4,
	"testcluster/vagrant":      4,
}

// homes says which packages may import a library: everybody else speaks of
// what it does in words of our own.
var homes = map[string][]string{
	"github.com/hashicorp/":            {"membership"},
	"github.com/cockroachdb/pebble":    {"archive"},
	"github.com/DataDog/zstd":          {"archive"},
	"github.com/emersion/go-smtp":      {"node/smtpd", "testcluster/peerbench"},
	"github.com/emersion/go-sasl":      {"node/smtpd"},
	"github.com/pires/go-proxyproto":   {"node/smtpd"},
	"github.com/emersion/go-message":   {"archive/mail"},
	"github.com/spf13/":                {"cmd/chainmail"},
	"github.com/go-viper/mapstructure": {"cmd/chainmail"},
	"go.yaml.in/yaml":                  {"cmd/chainmail"},
	"github.com/schollz/progressbar":   {"cmd/chainmail"},
	"github.com/coreos/go-systemd":     {"cmd/chainmail"},
}

type goPackage struct {
	ImportPath string
	Standard   bool
	Imports    []string
}

// packages lists ours and all that they are built of.
func packages(t *testing.T) map[string]goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=ImportPath,Standard,Imports", module+"/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	all := map[string]goPackage{}
	for d := json.NewDecoder(out); ; {
		var p goPackage
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all[p.ImportPath] = p
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestImportsPointDownOnly(t *testing.T) {
	all := packages(t)
	for path, p := range all {
		name, ours := strings.CutPrefix(path, module+"/")
		if !ours {
			continue
		}
		layer, known := layers[name]
		if !known {
			t.Errorf("package %s has no layer: give it one in layers_test.go and in docs/design.md", name)
		}
		for _, imported := range p.Imports {
			other, ours := strings.CutPrefix(imported, module+"/")
			switch {
			case ours && layers[other] >= layer:
				t.Errorf("%s (layer %d) imports %s (layer %d): imports point down only", name, layer, other, layers[other])
			case !ours && layer == 0 && !all[imported].Standard:
				t.Errorf("%s imports %s: layer 0 uses the standard library only", name, imported)
			}
		}
	}
}

func TestLibrariesStayInTheirHomes(t *testing.T) {
	for path, p := range packages(t) {
		name, ours := strings.CutPrefix(path, module+"/")
		if !ours {
			continue
		}
		for _, imported := range p.Imports {
			for library, allowed := range homes {
				if strings.HasPrefix(imported, library) && !slices.Contains(allowed, name) {
					t.Errorf("%s imports %s, which belongs to %s", name, imported, strings.Join(allowed, " and "))
				}
			}
		}
	}
}

func TestTopLevelHoldsOnlyTheHouse(t *testing.T) {
	allowed := []string{
		"cmd", "node", "chain", "membership", "archive", "lb", "testcluster", "docs", "packaging", ".ci",
		"go.mod", "go.sum", "Makefile", "Vagrantfile", "README.md", "LICENSE", "CHANGELOG.md",
		".git", ".gitignore", ".golangci.yml",
		"bin", "data", ".vagrant", // made by make build, make run and vagrant, not committed
	}
	entries, err := os.ReadDir(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(allowed, e.Name()) {
			t.Errorf("%s does not belong at the top level: move it into one of the folders", e.Name())
		}
	}
}
