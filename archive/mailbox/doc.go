// Package mailbox reads and writes the formats in which mail lies in files: a
// message each (EML), many in one (mbox), Maildir and zip.
//
// What a Sink has written, Open gives back byte for byte, whatever the bytes
// are. For mbox that takes two rules, which the writer and the reader share:
//
//	From alice@example.com Tue May 14 09:30:00 2024 LF    the From_ line
//	the message, with one ">" before each line that matches ^>*From_
//	LF                                                    exactly one, also behind a message
//	                                                      that has no newline at its end
//
// No message is ever held in memory whole.
package mailbox
