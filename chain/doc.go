// Package chain brings every receipt to the nodes that must hold it, and says
// which do not have it yet.
//
// # The idea
//
// Nothing is ever queued. Each node tells the others what it holds of every
// log ("holdings": sets of sequence numbers), and what a node lacks is a
// subtraction:
//
//	what it must keep (ring.View.Keepers) − what it holds
//
// Whoever holds some of that and is next in line sends it, in containers of
// many receipts; the receiver puts a container on disk with one sync and
// answers what it holds durably now. A node that was away for a month, one
// with an empty disk and one that lost a single receipt to a rotten sector are
// the same case: they lack something, and are given it.
//
//	 hello: "I hold …"     every node polls every other one: the control
//	a ◄───────────────► b  connection. While it is answered, b is live.
//
//	a ── live ────────► b  new mail, at once, small containers
//	a ── bulk ────────► b  history and large mail, in a connection of its own,
//	                       so that neither holds up new mail
//
// # Who sends
//
// A keeper is fed by the live keeper before it in the order of the ring; that
// one sends at once. The others are standbys: the i-th sends only what has been
// lacking for i × 2 s and is not just coming in from a better one. So mail
// normally goes around the ring once; a dead node is skipped as soon as it is
// known to be dead; and where two nodes cannot see each other, a third that
// sees both closes the gap. See plan.go.
//
// # What may be believed
//
// What a node believes of a peer's holdings never exceeds what the peer had on
// disk, or a 250 would be wrong. Beliefs belong to one life of the peer's
// process ("boot") and are ordered by a number that the peer gives to each look
// at its holdings ("generation"): see belief.go.
//
// # Files
//
//	chain.go     New, Run, Wake: the goroutines      options.go  what it needs of others
//	knowledge.go what is known, and who hears of news of it
//	plan.go      pure: who sends what to whom        history.go  since when it has been lacking
//	belief.go    pure: what a peer holds
//	link.go      one link session to a peer          lane.go     its live and bulk connections
//	batch.go     what goes into the next container   send.go     how it is sent
//	client.go    dial, EHLO, STARTTLS, versions      hello.go    the exchange of holdings
//	server.go    the other end of it all             receive.go  what is done with a body
//	incoming.go  reading and taking in a container, side by side
//	container.go the format of a container           wire.go     lines and replies
//	copies.go    250 waits for copies                confirm.go  no position is used twice
//	status.go    what the operator sees              backlog.go  pure: what is lacking where
//
// The protocol is described for others in docs/protocol.md.
package chain
