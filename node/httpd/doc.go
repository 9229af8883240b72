// Package httpd is a node's HTTP face: the JSON interface of the archive, its
// health pages and its metrics.
//
// One set of routes (routes.go) is served on two listeners that differ only in
// who is trusted:
//
//	TCP          programs of other machines    a bearer token opens what reads;
//	                                           health, metrics and the OpenAPI
//	                                           description are open
//	admin.sock   the machine's administrator   everything; the file's mode 0600
//	                                           is the lock
//
// Handlers return errors; respond.go translates them, once, to a status and an
// api.Error. The description in openapi.json is written by hand and held to
// the handlers by tests, in both directions.
//
// A client must never take a damaged message for a whole one: raw.go sends the
// last bytes of a body only after all of it was checked, and breaks the
// connection otherwise.
package httpd
