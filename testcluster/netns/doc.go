// Package netns makes hosts on one machine: network namespaces of Linux, each
// with two network cards, as machines have whose operators keep the clients and
// the nodes on networks of their own.
//
//	    host a            host b         host client
//	chain    front    chain    front        front
//	  |        |        |        |            |
//	  |        +--------|--------+------------+-- bridge front, 192.0.2.0/24
//	  +-----------------+------------------------ bridge chain, 198.51.100.0/24
//
// Each card is one end of a cable (a veth pair), the other end is a port of the
// bridge of its network, named after card and host: chain-a. The bridges are in
// a namespace of their own, the switch, and so is all that goes wrong: filters
// on the bridges let packets vanish, and a port that is down is a cable that was
// pulled. Nothing of it touches the machine's own network, and the addresses
// are of the blocks kept for documentation (RFC 5737), which nobody else has.
//
// Namespaces are named chainmail-PID-K-HOST, by the process that made them, so
// that clusters do not meet; Clean removes those of dead processes with all that
// runs in them. Root is needed, and the programs ip and nft.
package netns
