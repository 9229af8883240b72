// Package testcluster tries whole nodes: with real mail, real peers and real
// accidents.
//
// A Cluster is real nodes behind one interface, wherever they live:
//
//	Virtual     all in this process and in a testing/synctest bubble: a network in
//	            memory (package netsim), disks that lose what was not synced when
//	            the power goes, minutes of the cluster in moments
//	Processes   the real program, one process a node, on loopback and on the
//	            machine's disk (package local); kill is kill -9
//	Hosts       the same, each node on a host with two cards in network namespaces
//	            (package netns): cables are pulled, networks parted; root only
//
// A test sends mail, does harm, heals, and lets Check compare what is there
// with what was acknowledged:
//
//	testcluster.Virtual(t, testcluster.Options{Nodes: 2}, func(c *testcluster.Cluster) {
//		c.Send("a", 100)
//		c.Kill("b")
//		c.Send("a", 100)
//		c.Start("b")
//		c.Check()
//	})
//
// Package load below it sends mail as fast as it goes and checks one node;
// peerbench measures a node beside other servers.
package testcluster
