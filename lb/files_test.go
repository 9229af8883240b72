package lb_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chainmail/lb"
)

// content is every file of a folder, as "name: text" lines.
func content(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e.Name()+": "+strings.TrimSpace(string(text)))
	}
	return strings.Join(all, ", ")
}

// TestCommands: check refuses what holds "bad", reload fails while a file
// "no-reload" is there, and notes that it was called.
func TestCommands(t *testing.T) {
	for name, c := range map[string]struct {
		before  string // text of the file; empty: there is none
		text    string
		inPlace bool // the check looks at the file in its place
		noLoad  bool
		want    string // the folder afterwards
		problem string
	}{
		"first":                          {text: "good", want: "ca: CA, conf: good, reloaded: 1"},
		"changed":                        {before: "old", text: "good", want: "ca: CA, conf: good, reloaded: 1"},
		"refused":                        {before: "old", text: "bad", want: "ca: old CA, conf: old, conf.refused: bad", problem: "is refused, the one before stays; see "},
		"refused at first":               {text: "bad", want: "ca: old CA, conf.refused: bad", problem: "is refused, and there is none before it: no configuration is in force yet; see "},
		"in place":                       {before: "old", text: "good", inPlace: true, want: "ca: CA, conf: good, reloaded: 1"},
		"refused in place":               {before: "old", text: "bad", inPlace: true, want: "ca: old CA, conf: old, conf.refused: bad", problem: "is refused, the one before stays; see "},
		"refused in place at first":      {text: "bad", inPlace: true, want: "ca: old CA, conf.refused: bad", problem: "is refused, and there is none before it: no configuration is in force yet; see "},
		"no reload":                      {before: "old", text: "good", noLoad: true, want: "ca: old CA, conf: old, no-reload: ", problem: "the reload failed with the new configuration, the one before stays: "},
		"no reload at first, as checked": {text: "good", noLoad: true, want: "ca: old CA, conf: good, no-reload: ", problem: "no configuration is in force yet: "},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "it's a folder")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			write := func(name, text string) {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write("ca", "old CA")
			if c.before != "" {
				write("conf", c.before)
			}
			if c.noLoad {
				write("no-reload", "")
			}
			quoted := "'" + strings.ReplaceAll(dir, "'", `'\''`) + "'"
			// The CA must be there already when the file is checked.
			commands := lb.Commands{Check: "grep -q '^CA' " + quoted + "/ca && ! grep bad {}", Timeout: 10 * time.Second}
			if c.inPlace {
				commands.Check = "! grep bad " + quoted + "/conf"
			}
			commands.Reload = "! ls " + quoted + "/no-reload && echo 1 > " + quoted + "/reloaded"
			err := commands.Install(t.Context(), []lb.File{
				{Path: filepath.Join(dir, "conf"), Text: []byte(c.text)}, {Path: filepath.Join(dir, "ca"), Text: []byte("CA"), Support: true},
			})
			if (err == nil) != (c.problem == "") || err != nil && !strings.Contains(err.Error(), c.problem) {
				t.Errorf("%v, want %q", err, c.problem)
			}
			if got := content(t, dir); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// TestCommandsThatHang are ended with their children.
func TestCommandsThatHang(t *testing.T) {
	began := time.Now()
	err := lb.Commands{Check: "sleep 60 & sleep 60; true {}", Timeout: 200 * time.Millisecond}.
		Install(t.Context(), []lb.File{{Path: filepath.Join(t.TempDir(), "conf"), Text: []byte("x")}})
	if err == nil || !strings.Contains(err.Error(), "longer than 200ms") || time.Since(began) > 20*time.Second {
		t.Error(err, time.Since(began))
	}
}

func TestCommandsSayWhereTheyCannotWrite(t *testing.T) {
	err := lb.Commands{Timeout: time.Second}.Install(t.Context(), []lb.File{{Path: "/nonexistent/conf"}})
	if err == nil || !strings.Contains(err.Error(), "/nonexistent") {
		t.Error(err)
	}
}
