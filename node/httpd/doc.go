// Package httpd is a node's HTTP face: the JSON interface of the archive, its
// health pages and its metrics.
//
// One set of routes (routes.go) is served on two listeners that differ only in
// who is trusted (access.go):
//
//	TCP          programs of other machines    a bearer token opens what reads;
//	                                           health, metrics and the OpenAPI
//	                                           description are open
//	             nodes of the cluster, which   a member's certificate opens what
//	             offer "chainmail/1" by ALPN   reads and what is for nodes; without
//	                                           one a node may only ask to join
//	admin.sock   the machine's administrator   everything; the file's mode 0600
//	                                           is the lock
//
// People speak plain HTTP on TCP, or TLS with the operator's certificate; nodes
// speak TLS of the cluster's own. frontdoor.go tells them apart.
//
// Handlers return errors; respond.go translates them, once, to a status and an
// api.Error. The description in openapi.json is written by hand and held to
// the handlers by tests, in both directions.
//
// A client must never take a damaged message for a whole one: raw.go sends the
// last bytes of a body only after all of it was checked, and breaks the
// connection otherwise.
package httpd
