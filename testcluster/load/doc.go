// Package load sends mail as fast as a server takes it, keeps a list of what
// was acknowledged, and later proves that all of it is still there.
//
// [Run] is the generator. It is written to cost little, because it usually
// shares a machine with what it measures: the text of all mails is made once,
// a mail is that text from a varying line on under a header of its own, and a
// whole mail leaves in one system call. Each session keeps one connection and
// pipelines as far as RFC 2920 allows, with one mail at a time in the server's
// hands:
//
//	DATA (RFC 5321)                        BDAT (RFC 3030)
//
//	C: MAIL RCPT… DATA                     C: MAIL RCPT… BDAT n LAST <text>
//	S: 250 250… 354                        S: 250 250… 250
//	C: <text> . MAIL RCPT… DATA            C: MAIL RCPT… BDAT n LAST <text>
//	S: 250      250 250… 354               S: 250 250… 250
//
// Each line above is one write or one group of replies. DATA ends its group, as
// section 3.1 of RFC 2920 demands, and the next envelope rides with the text
// before it, so that a mail costs two round trips by DATA and one by BDAT.
//
// A mail counts as acknowledged, and its SHA-256 is written to Options.Acked,
// only after its final 2xx was read. A mail whose connection broke between its
// text and its answer is never sent again: its fate is unknown, and a second
// copy would look like a fault of the server. A mail that was refused for now
// (4xx) is offered again.
//
// [Check] is the other half: it reads every acknowledged hash back and says
// which messages are missing, altered, unreadable or there more often than they
// were acknowledged.
//
// [Message] gives the n-th message of a seed, byte for byte as Run sends it.
package load
