// Package netsim is a network in memory: hosts with IP addresses of their own,
// TCP and unix connections, UDP packets, and every accident that befalls them.
//
// It blocks only on sync.Cond and timers, so that inside a testing/synctest
// bubble whoever waits for the network lets the virtual clock run. Nothing is
// free of time: without a latency, two programs that talk without a pause would
// keep the clock of a bubble from ever moving.
//
//	n := netsim.New(seed)
//	n.Host("a").Listen("tcp", ":25")             // on 10.0.0.1:25
//	n.Host("b").Dial(ctx, "tcp", "10.0.0.1:25")  // or "a:25"
//	n.Cut("a", "b")                              // packets vanish: nobody is told
//
// What an accident looks like from the other end:
//
//	Cut       silence; after Heal connections go on, unless keep-alive gave up
//	Refuse    connections are reset, new ones refused
//	Crash     the process died: its connections are reset, new ones refused
//	PowerOff  the machine died: silence; after PowerOn resets
package netsim
