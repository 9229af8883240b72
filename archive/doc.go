// Package archive keeps mail for years: an append-only log of receipts and the
// exact bytes of every message, on one pebble database.
//
// The promise it makes is small and hard: when Draft.Commit returns nil, the
// message and its receipt are on disk, whole; when it does not, no trace of
// them is ever seen. One write batch holds the last of the body, the receipt,
// the indexes and the new length of the log, and one sync of the write-ahead
// log makes it true. Batches enter the write-ahead log in the order of their
// sequence numbers, so whatever a crash leaves is a prefix of the log, without
// gaps. Senders that commit at the same time share a sync.
//
// Bodies never sit in memory whole. A Draft compresses a message chunk by
// chunk as it arrives; large ones are written ahead of their receipt, under a
// marker by which the next start removes what was never committed.
//
// What may not happen silently ends the process loudly: a write or sync that
// failed is not tried again, because the kernel may have dropped the data it
// could not write and the next sync would succeed without it.
//
// The archive holds any number of logs: its own, and those that peers give it
// through an Intake, in any order and with gaps. A log's receipts, bodies and
// body numbers are the same bytes on every node, so that nodes can compare what
// they hold by digests. Logs says what is held: durable, and not known to be
// damaged. So a receipt that rots is missing, as one that never came is, and
// the peer that gives it again repairs it.
//
// Keys and values are drawn in keys.go, body.go and record.AppendReceipt, and
// described for other programs in docs/format.md.
package archive
