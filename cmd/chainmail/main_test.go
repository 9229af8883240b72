package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"chainmail/testcluster/support"
)

var update = flag.Bool("update", false, "rewrite the golden files of this package")

var scratch string // a folder for all tests of this package

func TestMain(m *testing.M) {
	time.Local = time.UTC // golden files hold times of the operator's zone
	var err error
	if scratch, err = os.MkdirTemp("", "chainmail"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := support.Main(m)
	os.RemoveAll(scratch)
	os.Exit(code)
}

// runCommand executes one command line in this process.
func runCommand(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(t.Context(), args, streams{strings.NewReader(""), &out, &err})
	return code, out.String(), err.String()
}

// golden compares text with a file of testdata.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("differs from %s (run the test with -update to accept it)\n got:\n%s\nwant:\n%s", file, got, want)
	}
}
