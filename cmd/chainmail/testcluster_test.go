package main

import (
	"context"
	"errors"
	"strings"
	"testing"

	"chainmail/testcluster/local"
)

// TestTestClusterModes: what testcluster run makes of its flags.
func TestTestClusterModes(t *testing.T) {
	old := runTestCluster
	t.Cleanup(func() { runTestCluster = old })
	errRan := errors.New("ran")
	var got local.RunOptions
	runTestCluster = func(_ context.Context, o local.RunOptions) error {
		got = o
		return errRan
	}
	oldNginx := needNginx
	t.Cleanup(func() { needNginx = oldNginx })
	for _, tt := range []struct {
		args, says      string // by which it is refused; empty: it runs
		netNS, balancer bool
	}{
		{"", "", false, false},
		{"--lb", "", false, true},
		{"--lb --base-port 101", "", false, true},
		{"--lb=no", "", false, false},
		{"--lb=auto", "", false, true},
		{"--lb=maybe", `--lb is "maybe": use yes, no or auto`, false, false},
		{"--mode processes", "", false, false},
		{"--mode netns", "", true, false},
		{"--mode netns --lb --nodes 26", "", true, true},
		{"--mode vm", `--mode is "vm": use processes or netns`, false, false},
		{"--mode netns --base-port 2500", "--base-port is for --mode processes", false, false},
		{"--lb --base-port 100", "--base-port is 100: the balancer takes ports from 100 before it on: use one from 101", false, false},
	} {
		needNginx = func() error { return nil }
		code, _, stderr := runCommand(t, append([]string{"testcluster", "run"}, strings.Fields(tt.args)...)...)
		switch {
		case tt.says != "":
			if code != exitUsage || !strings.Contains(stderr, tt.says) {
				t.Errorf("%q: exit code %d, %q", tt.args, code, stderr)
			}
		case code != exitFailed || !strings.Contains(stderr, errRan.Error()):
			t.Errorf("%q does not run: exit code %d, %q", tt.args, code, stderr)
		case got.NetNS != tt.netNS || got.Balancer != tt.balancer:
			t.Errorf("%q runs %+v", tt.args, got)
		}
	}
}

// TestTestClusterWithoutNginx: --lb=auto says why there is no balancer, and goes
// on.
func TestTestClusterWithoutNginx(t *testing.T) {
	oldRun, oldNginx := runTestCluster, needNginx
	t.Cleanup(func() { runTestCluster, needNginx = oldRun, oldNginx })
	needNginx = func() error { return errors.New("install nginx") }
	runTestCluster = func(_ context.Context, o local.RunOptions) error {
		if o.Balancer {
			t.Error("runs with a balancer")
		}
		return nil
	}
	code, _, stderr := runCommand(t, "testcluster", "run", "--lb=auto")
	if code != exitOK || stderr != "There is no balancer in front of the nodes: install nginx\n" {
		t.Errorf("exit code %d, %q", code, stderr)
	}
}
