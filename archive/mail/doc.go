// Package mail reads what an archive needs to know of a message: its header
// fields, the addresses in them, and what an Exchange journal report says of
// the message inside it.
//
// The functions are pure and tolerant. Mail that breaks every rule of RFC 5322
// arrived all the same and is archived all the same, so a malformed line is
// left out and a wrong charset is guessed; nothing here refuses a message or
// changes a byte of it. What they keep in memory is bounded, whatever the
// message does.
package mail
