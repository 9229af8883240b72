// Package local runs nodes of a cluster as processes of the real program, all
// on loopback: for people who want to see a cluster, and for tests.
//
// Node a has its SMTP port at the base port, chain, gossip, raft and HTTP on
// the next four, and so has each further node ten ports on. DIR/a is the data
// directory of a, DIR/a.log what it says.
package local
