package main

import (
	"os"
	"strings"
	"testing"

	"chainmail/node"
)

// TestWelcome: the hint to add a node is for the first one only, and names the
// address by which others reach it.
func TestWelcome(t *testing.T) {
	addrs := map[string]string{"smtp": "[::]:25", "http": "[::]:8025"}
	config := node.Config{Name: "a", DataDir: "/var/lib/chainmail"}
	witness := config
	witness.Role = node.RoleWitness
	var got strings.Builder
	for _, is := range []welcome{
		{config: config, addrs: addrs, advertised: map[string]string{"http": "192.0.2.1:8025"}, members: 1},
		{config: config, addrs: addrs, advertised: map[string]string{"http": "[2001:db8::1]:8025"}, members: 1},
		{config: config, addrs: map[string]string{"smtp": "127.0.0.1:2525", "http": "127.0.0.1:8025"}, advertised: map[string]string{"http": "127.0.0.1:8025"}, members: 1},
		{config: config, addrs: addrs, members: 1},
		{config: config, addrs: addrs, advertised: map[string]string{"http": "192.0.2.1:8025"}, members: 3},
		{config: witness, addrs: addrs, members: 2},
	} {
		printWelcome(&got, is)
	}
	golden(t, "testdata/output/welcome.txt", strings.ReplaceAll(got.String(), os.Args[0], "chainmail"))
}
