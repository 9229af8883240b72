// Package local runs nodes of a cluster as processes of the real program on
// this machine: for people who want to see a cluster, and for tests. A balancer
// in front of them is one more process.
//
// They live on one of two sites. On loopback, node a has its SMTP port at the
// base port, chain, gossip, raft and HTTP on the next four, and so has each
// further node ten ports on; the balancer has the SMTP and the HTTP port of a
// node a hundred ports before the first. On hosts (package netns), each has the
// ports of a real one at addresses of its own: 192.0.2.1 is node a on the
// clients' network and 198.51.100.1 on that of the nodes.
//
// DIR/a is the data directory of a, DIR/a.log what it says, DIR/lb and
// DIR/lb.log are the balancer's.
package local
