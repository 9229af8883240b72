package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// TestManPage: what of a command goes where.
func TestManPage(t *testing.T) {
	root := &cobra.Command{Use: "chainmail"}
	cmd := &cobra.Command{
		Use: "send-off [NAME] {--all | --to HOST:PORT}", Short: "Send one off: now",
		Long: `Sends one off, as "RFC 1123" says: C:\mail.
.hidden is no request, and 'neither' is this.

  GREEN   it's away
  RED     it is not

And on … to the end.`,
		Example: "  chainmail send-off --all\n  chainmail send-off b > it",
		RunE:    func(*cobra.Command, []string) error { return nil },
	}
	cmd.Flags().StringP("to", "t", "", "where `HOST:PORT` is")
	cmd.Flags().Int("times", 3, "how often")
	cmd.Flags().Bool("all", false, "really all?")
	cmd.Flags().String("secret", "", "")
	_ = cmd.Flags().MarkHidden("secret")
	root.AddCommand(cmd)
	golden(t, "testdata/output/man.1", manPage(cmd, time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC)))
}

// TestManPages: one for every command, in which man finds no fault.
func TestManPages(t *testing.T) {
	dir := t.TempDir()
	if code, _, stderr := runCommand(t, "man", "--dir", dir, "--date", "2026-01-31"); code != exitOK {
		t.Fatal(stderr)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil || len(names) < 30 {
		t.Fatalf("%d pages, %v", len(names), err)
	}
	for _, name := range []string{"chainmail", "chainmail-join-node", "chainmail-token-join", "chainmail-completion"} {
		if !exists(filepath.Join(dir, name+".1")) {
			t.Errorf("%s has no page", name)
		}
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, section := range []string{".TH ", `.SH "NAME"`, `.SH "SYNOPSIS"`, `.SH "DESCRIPTION"`, `.SH "SEE ALSO"`} {
			if !strings.Contains(string(text), "\n"+section) && !strings.HasPrefix(string(text), section) {
				t.Errorf("%s lacks %s", filepath.Base(name), section)
			}
		}
	}
	if groff, err := exec.LookPath("groff"); err == nil {
		for _, name := range names {
			if out, err := exec.Command(groff, "-ww", "-man", "-Tutf8", "-z", name).CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("%s: %v\n%s", filepath.Base(name), err, out)
			}
		}
	} else {
		t.Log("groff is not here: nobody has read the pages")
	}
	if code, _, stderr := runCommand(t, "man"); code != exitUsage || !strings.Contains(stderr, "--dir") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
