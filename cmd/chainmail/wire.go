package main

import (
	"chainmail/node"
	"chainmail/testcluster/local"
)

// What the commands start in other packages; tests put something else here.
var (
	joinCluster    = node.Join
	recoverQuorum  = node.Recover
	runTestCluster = local.Run
	runNode        = serveNode
)
