// Package membership says who belongs to the cluster, who is alive, and proves
// it by certificates.
//
// Three parts, each of which may fail without the others:
//
//	view       the last committed ring.View, on disk (view.json) and in memory:
//	           there at once when a node starts, with or without peers
//	gossip     who seems alive (memberlist); changes routing, never membership
//	consensus  the few things that people change (Raft): members, ring order,
//	           policies, and the secrets that make a cluster: CA key, gossip
//	           keys, join tokens and API tokens (as hashes)
//
// Mail never waits for any of it: View, Alive and the TLS configurations answer
// from memory, and without a quorum only changes are refused.
//
// # Identity
//
// The first node makes a certificate authority. A member is known by the
// SHA-256 of its certificate, which the view lists: a certificate that the view
// no longer lists is refused, whatever the CA once signed. Certificates carry
// the member's ID and the epoch at which they were signed, so that a node whose
// view is older than a certificate can still tell whom it belongs to (see
// certificate.member). They never expire: what ends them is the view, and an
// expiry date would only add a day on which the cluster stops. People, balancers
// and programs with an API token know none of that: they verify a node by the CA
// and by the DNS name that all members' certificates carry, api.NodeName.
//
// # The raft port
//
//	TLS 1.3, both sides with a member's certificate
//	first byte 'R'   Raft's own stream follows
//	first byte 'C'   one control request: 4 bytes of length, JSON; the answer alike
//	ALPN "chainmail-standing/1"
//	                 no first byte: the server says at once whether the client is
//	                 a member, also to one that was removed, and hangs up
//
// A change asked of any member is forwarded to the leader as a control request.
// It carries a random ID, so that repeating it after a lost answer makes it
// once.
//
// # On disk
//
//	cluster/view.json     last committed state: view, CA, gossip keys, tokens
//	cluster/node.pem      certificate chain and key of this node
//	cluster/next.pem      the next key, while node.pem is being replaced
//	cluster/raft/         Raft's log and snapshots
//	cluster/lock          held while a process uses the directory
//	cluster.new/          a cluster directory being made; renamed when complete
//	cluster.join/         the key and token of a join that is not complete
package membership
