// Package testcluster tries whole nodes: with real mail, real peers and real
// accidents. Package load below it sends mail and checks that all of it was
// kept; peerbench measures a node beside other servers.
package testcluster
