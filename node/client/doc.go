// Package client speaks a node's HTTP interface: for the commands over the
// admin socket, for programs elsewhere over TCP with an API token, which is all
// that NewRemote needs to know that it speaks with a node of the cluster, and for
// other nodes over TCP with a certificate of the cluster.
//
// client.go and cluster.go hold one method for each operation. Import and Export are the
// loops over many messages; both may be stopped at any moment and repeated.
package client
