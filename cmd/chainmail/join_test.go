package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chainmail/node"
)

// packaged makes this process believe that the packages' configuration, which
// sets nothing, and their service are there.
func packaged(t *testing.T) (file string) {
	t.Helper()
	system, directory, unit := systemConfig, defaultDirectory, serviceUnit
	t.Cleanup(func() { systemConfig, defaultDirectory, serviceUnit = system, directory, unit })
	top := t.TempDir()
	systemConfig, defaultDirectory, serviceUnit = filepath.Join(top, "chainmail.yaml"), filepath.Join(top, "data"), filepath.Join(top, "chainmail.service")
	text, err := os.ReadFile("../../packaging/etc/chainmail.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{systemConfig: text, serviceUnit: nil} {
		if err := os.WriteFile(name, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("CHAINMAIL_DATA_DIR", "")
	return systemConfig
}

// TestJoinWritesThePackagedFile: it is the one that the service reads, also when
// something else than the host's name was asked for.
func TestJoinWritesThePackagedFile(t *testing.T) {
	file := packaged(t)
	j := recordJoins(t)
	for _, line := range []string{"join-node --name b --peer a:8025 --token t --smtp 127.0.0.1:2510", "join-node --name b --peer a:8025 --token t"} {
		// The default directory in these tests is not the node's own.
		args := append(strings.Fields(line), "--data-dir", defaultDirectory)
		code, stdout, stderr := runCommand(t, args...)
		if code != exitOK {
			t.Fatalf("%s: exit code %d: %s", line, code, stderr)
		}
		for _, want := range []string{"The configuration is in " + file + ".", "  systemctl enable --now chainmail\n", "  chainmail status --watch\n"} {
			if !strings.Contains(stdout, want) {
				t.Errorf("%s: %q is not in\n%s", line, want, stdout)
			}
		}
		if code, _, stderr := runCommand(t, "node"); code != exitOK {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
		if c := j.ran[len(j.ran)-1]; c.Name != "b" || c.DataDir != defaultDirectory || c.SMTP != "127.0.0.1:2510" {
			t.Errorf("%s: the service is %s in %s on %s", line, c.Name, c.DataDir, c.SMTP)
		}
	}
	if exists(filepath.Join(defaultDirectory, ownConfig)) {
		t.Error("there are two configurations")
	}
	// What an operator wrote counts, and is not overwritten.
	code, _, stderr := runCommand(t, "join-node", "--name", "c", "--peer", "a:8025", "--token", "t", "--data-dir", defaultDirectory)
	if code != exitUsage || !strings.Contains(stderr, `name is "b" in it and "c" by --name`) {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// TestPackagedFileHidesNoOther: a configuration from before the package.
func TestPackagedFileHidesNoOther(t *testing.T) {
	packaged(t)
	own := filepath.Join(defaultDirectory, ownConfig)
	if err := os.MkdirAll(defaultDirectory, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(own, []byte("name: old\ndata_dir: "+defaultDirectory+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	j := recordJoins(t)
	if code, _, stderr := runCommand(t, "node"); code != exitOK || j.ran[0].Name != "old" {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if file, err := new(joining).configFile(newJoinNodeCommand().Flags()); err != nil || file != own {
		t.Errorf("join-node is about %s, %v", file, err)
	}
}

func TestJoinAsWitness(t *testing.T) {
	file := packaged(t)
	j := recordJoins(t)
	code, stdout, stderr := runCommand(t, "join-node", "--witness", "--name", "w", "--peer", "a:8025", "--token", "t", "--data-dir", defaultDirectory)
	if code != exitOK || j.joined[0].Config.Role != node.RoleWitness || !strings.Contains(stdout, "see that it votes:\n  chainmail status\n") {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	if text, _ := os.ReadFile(file); !strings.Contains(string(text), "\nrole: witness\n") {
		t.Errorf("the file is\n%s", text)
	}
	if code, _, stderr := runCommand(t, "node"); code != exitOK || j.ran[0].Role != node.RoleWitness {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
