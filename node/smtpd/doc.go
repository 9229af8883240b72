// Package smtpd takes mail by SMTP and LMTP and hands it to the archive.
//
// go-smtp is the frame of the protocol: it reads command lines, keeps the
// order of commands and words the replies. What it does less safely or more
// slowly than an archive needs is done by the gate, a net.Conn of ours that
// stands between the socket and go-smtp:
//
//	      socket (TCP, unix, TLS)
//	        │            ▲
//	        ▼            │  replies, gathered until the gate must wait
//	┌──────────────── gate ────────────────┐
//	│ one command line at a time, read     │
//	│ whole, within the idle time-out      │
//	│ MAIL, RCPT: addresses and parameters │
//	│ BDAT: chunks     STARTTLS: handshake │
//	└──────┬────────────────────────┬──────┘
//	       │ lines go-smtp accepts  │ bytes of the body
//	       ▼                        ▼
//	    go-smtp ──── calls ───►  session ───► Draft (the archive)
//
// Because the gate never hands over more than the current line, go-smtp's own
// buffers are empty whenever a body begins, and the body can be read from the
// gate's buffer: in slices, not byte by byte, and never as commands.
//
// What the gate says to go-smtp differs from what the client said in four
// places, each explained where it is done: the paths of MAIL and RCPT
// (address.go), chunks (chunk.go), the end of DATA (body.go) and STARTTLS
// (starttls.go).
//
// On a connector for the chain the way parts at STARTTLS: a node of the cluster
// leaves the gate there and is served by the chain (frontdoor.go).
//
// A connection belongs to one goroutine, go-smtp's. Others touch only its
// link: they wake it for a drain, or close the socket under it.
package smtpd
