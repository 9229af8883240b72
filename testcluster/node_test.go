package testcluster_test

import (
	"testing"

	"chainmail/node"
	"chainmail/testcluster/support"
)

// config is that of a node on free ports of loopback, with a connector of each
// kind.
func config(t testing.TB) node.Config {
	t.Helper()
	c := support.Config(t)
	c.Connectors = []node.Connector{
		{Name: "smtp"},
		{Name: "lmtp", Kind: node.KindLMTP, Listen: "127.0.0.1:0"},
		{Name: "exchange", Listen: "127.0.0.1:0", Journal: node.JournalExchange},
	}
	return c.Complete()
}
