// Package route sends the mail that a node holds to a foreign mail server by
// plain SMTP, for example to a second archive.
//
//	archive (Source)                        foreign server
//	  │ holdings, receipts, bodies                ▲
//	  ▼                                           │
//	feed ── the oldest mail ──► senders (one connection each)
//	  ▲                            │
//	  │ due again                  ├─ accepted ──► cursor
//	  └── deferred ◄── 4xx, broken ┤
//	      (bounded)                └─ 5xx ───────► parked, beside the cursor
//
// There is no queue. What is owed is what the node holds minus the cursor, the
// set of receipts that are settled: sent, parked, or older than the route. So
// a route that is down for a month costs a line of text.
//
// The cursor is noted once a second and after every 100 mails. A crash sends
// again what was settled since, so the foreign server gets every mail at least
// once; the same holds for a connection that breaks before the last reply.
//
// A mail that the server refuses for good is parked: it is shown, and sent
// again when asked. A mail that it refuses for now is deferred, and others go
// on. When there is trouble with the connection itself, the whole route waits,
// and then tries with one mail at a time.
//
// Bytes go as they are. With CHUNKING the server gets them exactly; with DATA
// dots are stuffed (stuff.go), and a mail without a final line end gets one,
// because DATA cannot do without.
package route
