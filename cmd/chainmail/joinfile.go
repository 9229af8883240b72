package main

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"

	"chainmail/node"
)

// joinedKeys are what join-node writes of a configuration, each with what the
// file says of it.
var joinedKeys = []struct{ key, comment string }{
	{"name", "Name of the node in its cluster."},
	{"role", "A witness votes and keeps no mail."},
	{"data_dir", "Directory of the node: mail, certificate, keys."},
	{"smtp", "Address that takes mail."},
	{"chain", "Address for mail from the other nodes."},
	{"gossip", "Address for the other nodes' gossip, TCP and UDP."},
	{"raft", "Address for the other nodes' Raft."},
	{"http", "Address of health, metrics and the API, and for the other nodes."},
	{"advertise", "Where others reach these, when it is not there."},
	{"log", "The node's log, on standard error."},
}

// joinedConfig is the file for a new member: the name, the directory, and
// those addresses that are not the default.
func joinedConfig(c node.Config) (string, error) {
	values, err := document(c)
	if err != nil {
		return "", err
	}
	standard, err := document(node.Default())
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Configuration of the chainmail node %s, written when it joined its cluster.\n# packaging/chainmail.yaml documents every key; after a change:\n#   chainmail config check --config FILE\n", c.Name)
	for _, k := range joinedKeys {
		value := values[k.key]
		if group, ok := value.(map[string]any); ok {
			value = withoutEmpty(group)
		}
		always := k.key == "name" || k.key == "data_dir"
		if !always && (isEmpty(value) || fmt.Sprint(value) == fmt.Sprint(standard[k.key])) {
			continue
		}
		fmt.Fprintf(&b, "\n# %s\n", k.comment)
		if err := writeYAML(&b, map[string]any{k.key: value}); err != nil {
			return "", err
		}
	}
	return b.String(), nil
}

func withoutEmpty(group map[string]any) map[string]any {
	kept := map[string]any{}
	for key, value := range group {
		if value != "" {
			kept[key] = value
		}
	}
	return kept
}

func isEmpty(value any) bool {
	group, isGroup := value.(map[string]any)
	return value == nil || value == "" || isGroup && len(group) == 0
}

// document is a configuration as its file would be read.
func document(c node.Config) (values map[string]any, err error) {
	text, err := configYAML(c)
	if err != nil {
		return nil, err
	}
	return values, yaml.Unmarshal([]byte(text), &values)
}

// settings are the single values of a configuration by their keys, groups
// joined by keyDelimiter.
func settings(c node.Config) map[string]string {
	flat := map[string]string{}
	var walk func(prefix string, values map[string]any)
	walk = func(prefix string, values map[string]any) {
		for key, value := range values {
			if group, ok := value.(map[string]any); ok {
				walk(prefix+key+keyDelimiter, group)
			} else {
				flat[prefix+key] = fmt.Sprint(value)
			}
		}
	}
	if values, err := document(c); err == nil { // it always can be printed
		walk("", values)
	}
	return flat
}
