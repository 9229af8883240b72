package httpd

import (
	"crypto/sha256"
	"errors"
	"io"
	"net/http"

	"chainmail/archive"
	"chainmail/archive/mail"
	"chainmail/archive/record"
	"chainmail/node/api"
)

// importMessage archives the request's body as one message, with an envelope
// derived from its header. A message whose bytes the archive holds already,
// by itself or inside a journal report, is left as it is.
func (s *Server) importMessage(w http.ResponseWriter, r *http.Request) error {
	if r.ContentLength > s.opts.MaxMessageSize {
		return tooLargeProblem(s.opts.MaxMessageSize)
	}
	body := upload{
		body:    http.MaxBytesReader(w, r.Body, s.opts.MaxMessageSize),
		control: http.NewResponseController(w),
		stall:   s.opts.Stall,
	}
	draft, err := s.opts.Begin(r.Context())
	if err != nil {
		return err
	}
	defer draft.Discard()

	sum := sha256.New()
	stored := io.MultiWriter(draft, sum)
	fields, err := mail.ParseHeader(io.TeeReader(body, stored)) // what it reads ahead is stored too
	if err != nil {
		return uploadProblem(err)
	}
	if _, err := io.CopyBuffer(stored, body, make([]byte, copyChunk)); err != nil {
		return uploadProblem(err)
	}

	hash := record.Hash(sum.Sum(nil))
	unlock := s.imports.lock(hash)
	defer unlock()
	held, err := s.find(hash.String())
	if err == nil {
		writeJSON(w, http.StatusOK, api.Accepted{SHA256: hash.String(), Position: held.receipts[0].Position.String(), Existing: true})
		return nil
	}
	if !errors.Is(err, archive.ErrNotFound) {
		return err
	}
	from, to := mail.EnvelopeFrom(fields)
	receipt, err := draft.Commit(record.Envelope{From: from, To: to, Connector: "import"})
	if err != nil {
		return err
	}
	w.Header().Set("Location", api.Prefix+"/messages/"+hash.String())
	writeJSON(w, http.StatusCreated, api.Accepted{SHA256: hash.String(), Position: receipt.Position.String()})
	return nil
}

// uploadProblem makes a 400 of a body that ended too early: the client may
// still be there when a proxy lies between.
func uploadProblem(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return badRequest("the body ended before its Content-Length")
	}
	return err
}
