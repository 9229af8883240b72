package mail

import (
	"strings"

	"chainmail/archive/record"
)

// reportText is what the text part of a journal report says.
type reportText struct {
	journal   record.Journal
	hasSender bool // a Sender line was there, if only for the null sender
}

// parseReport reads the text of a journal report: one "Name: value" a line, as
// Microsoft describes it in [MS-XJRNL].
//
//	Sender: alice@example.com
//	On-Behalf-Of: ceo@example.com
//	Subject: Figures
//	Message-ID: <1@example.com>
//	Label: Confidential
//	To: bob@example.com
//	Cc: carol@example.com, Expanded: sales@example.com
//	Bcc: dave@example.com, Forwarded: david@example.com
//	Recipient: eve@example.net
//
// Exchange 2003 writes "Recipients:" and a line for each, with display names.
// Lines may be folded as in a header; unknown names are passed over.
func parseReport(text string) reportText {
	var r reportText
	text = strings.TrimPrefix(text, "\uFEFF")
	var name string
	var value strings.Builder // of the line that may still go on
	next := func(n, v string) {
		r.line(name, value.String())
		name = n
		value.Reset()
		value.WriteString(v)
	}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \t\r\n")
		n, v, isField := strings.Cut(line, ":")
		n = strings.ToLower(strings.TrimSpace(n))
		switch {
		case line == "":
			next("", "")
		case (line[0] == ' ' || line[0] == '\t') && name != "":
			value.WriteString(" " + strings.TrimSpace(line))
		case name == "recipients" && !(isField && isReportName(n)):
			next(name, line) // a line of an Exchange 2003 list
		default:
			next(n, strings.TrimSpace(v))
		}
	}
	next("", "")
	return r
}

func isReportName(lower string) bool {
	switch lower {
	case "sender", "on-behalf-of", "subject", "message-id", "label", "to", "cc", "bcc", "recipient", "recipients":
		return true
	}
	return false
}

func (r *reportText) line(lowerName, value string) {
	j := &r.journal
	setOnce := func(to *string, v string) {
		if *to == "" {
			*to = v
		}
	}
	switch lowerName {
	case "sender":
		r.hasSender = true
		setOnce(&j.Sender, reportAddress(value))
	case "on-behalf-of":
		setOnce(&j.OnBehalfOf, reportAddress(value))
	case "subject":
		setOnce(&j.Subject, value)
	case "message-id":
		setOnce(&j.MessageID, value)
	case "to":
		r.recipients("To", value)
	case "cc":
		r.recipients("Cc", value)
	case "bcc":
		r.recipients("Bcc", value)
	case "recipient", "recipients":
		r.recipients("Recipient", value)
	}
}

// recipients reads one line: usually one recipient, in older forms several
// with commas or semicolons between them, each perhaps followed by how it came
// to be one.
func (r *reportText) recipients(role, value string) {
	j := &r.journal
	first := len(j.Recipients)
	for _, token := range splitRecipients(value) {
		expanded, isExpanded := cutPrefixFold(token, "expanded:")
		forwarded, isForwarded := cutPrefixFold(token, "forwarded:")
		switch known := len(j.Recipients) > first; {
		case isExpanded && known:
			j.Recipients[len(j.Recipients)-1].Expanded = reportAddress(expanded)
		case isForwarded && known:
			j.Recipients[len(j.Recipients)-1].Forwarded = reportAddress(forwarded)
		case !isExpanded && !isForwarded:
			j.Recipients = append(j.Recipients, record.JournalRecipient{Address: reportAddress(token), Role: role})
		}
	}
}

// splitRecipients cuts at commas and semicolons outside quotes and angle
// brackets, and before "Expanded:" and "Forwarded:", which the grammar of
// Exchange 2007 puts behind the address without a comma.
func splitRecipients(s string) []string {
	var out []string
	start, quoted, angle := 0, false, false
	cut := func(end int) {
		if t := strings.TrimSpace(s[start:end]); t != "" {
			out = append(out, t)
		}
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '<' || c == '>':
			angle = c == '<'
		case !angle && (c == ',' || c == ';'):
			cut(i)
			start = i + 1
		case !angle && c == ' ' && isHow(s[i+1:]):
			cut(i)
			start = i
		}
	}
	cut(len(s))
	return out
}

func isHow(s string) bool {
	_, a := cutPrefixFold(s, "expanded:")
	_, b := cutPrefixFold(s, "forwarded:")
	return a || b
}

// reportAddress takes the bare address out of one value of a report. What is
// none (an X.400 or Exchange directory name) is kept as it stands.
func reportAddress(s string) string {
	s = strings.TrimSpace(s)
	if v, ok := cutPrefixFold(s, "smtp:"); ok {
		s = strings.TrimSpace(v)
	}
	if a := parseAddresses(s); len(a) > 0 {
		return a[0]
	}
	return strings.Trim(s, "<>")
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}
