package httpd

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"chainmail/archive/record"
	"chainmail/node/api"
)

// Digester tells what the archive holds of a log, in a form that peers can
// compare with theirs.
type Digester interface {
	// Segment digests receipts n*1024+1 … (n+1)*1024 of a log.
	Segment(ctx context.Context, log record.StoreID, n uint64) (api.Segment, error)
	// Digests lists one digest for each receipt that is held in the range.
	Digests(ctx context.Context, log record.StoreID, r record.Range) ([]api.ReceiptDigest, error)
}

// maxDigests is how many receipts one request asks about: those of a segment.
const maxDigests = 1024

// digests answers for one segment, or receipt by receipt.
func (s *Server) digests(w http.ResponseWriter, r *http.Request) error {
	if s.opts.Digests == nil {
		return notFound("this node keeps no mail").hint("ask a data member")
	}
	query := r.URL.Query()
	log, err := record.ParseStoreID(query.Get("log"))
	if err != nil {
		return badRequest("log: %v", err)
	}
	answer := api.Digests{Log: log.String()}
	if query.Has("segment") {
		n, err := strconv.ParseUint(query.Get("segment"), 10, 50) // so that n*1024 is a number
		if err != nil || query.Has("first") || query.Has("last") {
			return badRequest("segment is %q: give a number from 0, without first and last", query.Get("segment"))
		}
		segment, err := s.opts.Digests.Segment(r.Context(), log, n)
		if err != nil {
			return err
		}
		answer.Segment = &segment
	} else {
		span, err := parseRange(query)
		if err != nil {
			return err
		}
		if answer.Receipts, err = s.opts.Digests.Digests(r.Context(), log, span); err != nil {
			return err
		}
	}
	writeJSON(w, http.StatusOK, answer)
	return nil
}

func parseRange(query url.Values) (record.Range, error) {
	first, err1 := strconv.ParseUint(query.Get("first"), 10, 64)
	last, err2 := strconv.ParseUint(query.Get("last"), 10, 64)
	if err1 != nil || err2 != nil || first == 0 || last < first || last-first >= maxDigests {
		return record.Range{}, badRequest("first and last are %q and %q: give numbers from 1 for at most %d receipts, or a segment",
			query.Get("first"), query.Get("last"), maxDigests)
	}
	return record.Range{First: record.Seq(first), Last: record.Seq(last)}, nil
}
