// Package httpd is a node's HTTP face: the JSON interface of the archive, its
// health pages and its metrics.
//
// One set of routes (routes.go) is served on two listeners that differ only in
// who is trusted (access.go):
//
//	TCP          programs of other machines    a bearer token opens what reads, or
//	                                           one of the scope cluster the view of
//	                                           the cluster only; health, metrics, the
//	                                           CA's certificate and the OpenAPI
//	                                           description are open
//	             nodes of the cluster, which   a member's certificate opens what
//	             offer "chainmail/1" by ALPN   reads and what is for nodes; without
//	                                           one a node may only ask to join
//	admin.sock   the machine's administrator   everything; the file's mode 0600
//	                                           is the lock
//
// On TCP there is plain HTTP, unless the operator has set a certificate, and TLS,
// in which frontdoor.go tells three apart: nodes, by ALPN; those who ask for
// api.NodeName by SNI, and are shown the node's certificate by the cluster's CA;
// and all others, who are shown the operator's, or else that one too.
//
// What a balancer of the cluster says of its client's address is believed, for
// limits and logs (forwarded.go); no right depends on an address.
//
// Handlers return errors; respond.go translates them, once, to a status and an
// api.Error. The description in openapi.json is written by hand and held to
// the handlers by tests, in both directions.
//
// A client must never take a damaged message for a whole one: raw.go sends the
// last bytes of a body only after all of it was checked, and breaks the
// connection otherwise.
package httpd
