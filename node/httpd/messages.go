package httpd

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"chainmail/archive"
	"chainmail/archive/mail"
	"chainmail/archive/record"
	"chainmail/node/api"
)

const (
	defaultLimit = 100
	maxLimit     = 1000
	// A request looks at no more messages, and no longer, than this. A filter
	// that matches little gives short pages with a cursor instead of a request
	// that lasts for hours.
	maxScanned  = 10_000
	maxScanTime = 5 * time.Second
	// A page ends with the message that brings it to so many recipients: one
	// mail may have thousands.
	maxRecipients = 50_000
)

var listParameters = []string{"limit", "after", "since", "until", "from", "to", "subject", "order"}

// listQuery is a parsed request for a page of messages.
type listQuery struct {
	archive.Query
	limit    int
	from, to addressFilter
	subject  bool
}

func parseListQuery(v url.Values) (q listQuery, err error) {
	q.After = v.Get("after")
	q.limit = defaultLimit
	if s := v.Get("limit"); s != "" {
		if q.limit, err = strconv.Atoi(s); err != nil || q.limit < 1 || q.limit > maxLimit {
			return q, badRequest("limit is %q: give a number from 1 to %d", s, maxLimit)
		}
	}
	if q.Since, err = parseTime("since", v.Get("since")); err != nil {
		return q, err
	}
	if q.Until, err = parseTime("until", v.Get("until")); err != nil {
		return q, err
	}
	if q.from, err = parseAddressFilter("from", v.Get("from")); err != nil {
		return q, err
	}
	if q.to, err = parseAddressFilter("to", v.Get("to")); err != nil {
		return q, err
	}
	switch s := v.Get("order"); s {
	case "", "oldest":
	case "newest":
		q.Newest = true
	default:
		return q, badRequest("order is %q: give newest or oldest", s)
	}
	if s := v.Get("subject"); s != "" {
		if q.subject, err = strconv.ParseBool(s); err != nil {
			return q, badRequest("subject is %q: give true or false", s)
		}
	}
	return q, nil
}

// parseTime reads RFC 3339, or a date, which is its midnight in UTC.
func parseTime(name, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		return t, badRequest("%s is %q: give a date such as 2026-01-31 or a time such as 2026-01-31T14:05:00Z", name, s)
	}
	return t, nil
}

// addressFilter matches envelope addresses without regard to case: "a@b.example"
// that address, "@b.example" or "b.example" every address of that domain (and of
// no subdomain). The zero value matches everything.
type addressFilter struct{ local, domain string }

func parseAddressFilter(name, s string) (addressFilter, error) {
	at := strings.LastIndexByte(s, '@')
	f := addressFilter{domain: strings.ToLower(s[at+1:])}
	if at > 0 {
		f.local = strings.ToLower(s[:at])
	}
	if s != "" && (f.domain == "" || strings.ContainsAny(s, " <>,;")) {
		return f, badRequest("%s is %q: give one address such as ann@example.com, or a domain such as example.com", name, s)
	}
	return f, nil
}

func (f addressFilter) match(address string) bool {
	at := strings.LastIndexByte(address, '@')
	return strings.EqualFold(address[at+1:], f.domain) &&
		(f.local == "" || at > 0 && strings.EqualFold(address[:at], f.local))
}

// match reports whether one receipt of m fits both filters. The addresses are
// those of the envelope and, for a journal report, those that it lists: its
// own envelope names only the journal mailbox.
func (q listQuery) match(m record.Message) bool {
	return slices.ContainsFunc(m.Receipts, func(r record.Receipt) bool {
		from, to := []string{r.Envelope.From}, r.Envelope.To
		if j := r.Envelope.Journal; j != nil {
			from = append(from, j.Sender, j.OnBehalfOf)
			to = slices.Clone(to)
			for _, rcpt := range j.Recipients {
				to = append(to, rcpt.Address)
			}
		}
		return (q.from == addressFilter{} || slices.ContainsFunc(from, q.from.match)) &&
			(q.to == addressFilter{} || slices.ContainsFunc(to, q.to.match))
	})
}

func (s *Server) listMessages(w http.ResponseWriter, r *http.Request) error {
	q, err := parseListQuery(r.URL.Query())
	if err != nil {
		return err
	}
	list, err := s.page(r.Context(), q)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, list)
	return nil
}

func (s *Server) page(ctx context.Context, q listQuery) (api.MessageList, error) {
	list := api.MessageList{Messages: []api.Message{}}
	stop := time.Now().Add(maxScanTime)
	scanned, recipients, last := 0, 0, record.Message{}
	for m, err := range s.opts.Archive.Messages(ctx, q.Query) {
		if err != nil {
			return list, err
		}
		full := len(list.Messages) == q.limit || scanned == maxScanned || recipients >= maxRecipients
		if full || scanned > 0 && time.Now().After(stop) {
			list.Next = last.Receipts[0].Position.String()
			break
		}
		scanned, last = scanned+1, m
		if !q.match(m) {
			continue
		}
		am := apiMessage(item{hash: m.Hash, size: m.Size, receipts: m.Receipts})
		if q.subject {
			am.Subject = s.subject(m)
		}
		list.Messages = append(list.Messages, am)
		for _, r := range m.Receipts {
			recipients += len(r.Envelope.To)
		}
	}
	return list, nil
}

// subject is empty when the body cannot be read: a list must not fail because
// of one damaged message. Show says what is wrong with it.
func (s *Server) subject(m record.Message) string {
	it := item{hash: m.Hash, size: m.Size, receipts: m.Receipts}
	if j := it.journal(); j != nil && j.Subject != "" {
		return j.Subject
	}
	fields, err := s.headers(it)
	if err != nil {
		return ""
	}
	return mail.Get(fields, "Subject")
}

func (s *Server) showMessage(w http.ResponseWriter, r *http.Request) error {
	it, err := s.find(r.PathValue("id"))
	if err != nil {
		return err
	}
	m := apiMessage(it)
	fields, err := s.headers(it)
	if err != nil {
		// The receipts are still worth having.
		m.Problem = err.Error()
	}
	m.Subject = mail.Get(fields, "Subject")
	for _, f := range fields {
		m.Headers = append(m.Headers, api.Header{Name: f.Name, Value: f.Value})
	}
	writeJSON(w, http.StatusOK, m)
	return nil
}

// headers reads the header of a message; for a journal report that of the
// message inside, since nobody looks for the report's own.
func (s *Server) headers(it item) ([]mail.Field, error) {
	body, err := s.open(it, it.journal())
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return mail.ParseHeader(body)
}

func apiMessage(it item) api.Message {
	m := api.Message{SHA256: it.hash.String(), Size: it.size, ReceivedAt: it.receipts[0].ReceivedAt}
	for _, h := range it.reports {
		m.Reports = append(m.Reports, h.String())
	}
	for _, r := range it.receipts {
		m.Receipts = append(m.Receipts, apiReceipt(r))
	}
	return m
}

func apiReceipt(r record.Receipt) api.Receipt {
	e := r.Envelope
	return api.Receipt{
		Position: r.Position.String(), ReceivedAt: r.ReceivedAt, From: e.From, To: list(e.To),
		Client: e.Client, Helo: e.Helo, TLS: e.TLS, User: e.User, Connector: e.Connector, Journal: apiJournal(e.Journal),
	}
}

func apiJournal(j *record.Journal) *api.Journal {
	if j == nil {
		return nil
	}
	a := &api.Journal{
		InnerSHA256: j.Inner.String(), InnerSize: j.InnerSize, Sender: j.Sender, Subject: j.Subject,
		MessageID: j.MessageID, OnBehalfOf: j.OnBehalfOf, Recipients: []api.JournalRecipient{},
	}
	for _, r := range j.Recipients {
		a.Recipients = append(a.Recipients, api.JournalRecipient(r))
	}
	return a
}

// list is s as a JSON array even when it is nil.
func list[T any](s []T) []T { return append([]T{}, s...) }

// byTime orders receipts of several reports.
func byTime(a, b record.Receipt) int {
	return cmp.Or(a.ReceivedAt.Compare(b.ReceivedAt), cmp.Compare(a.Position.Store, b.Position.Store), cmp.Compare(a.Position.Seq, b.Position.Seq))
}
