// Package client speaks a node's HTTP interface: for the commands over the
// admin socket, for programs elsewhere over TCP with an API token.
//
// client.go holds one method for each operation. Import and Export are the
// loops over many messages; both may be stopped at any moment and repeated.
package client
