package httpd

import (
	_ "embed"
	"net/http"
)

// description is the OpenAPI 3.1 description of the routes.
//
//go:embed openapi.json
var description []byte

func (s *Server) openAPI(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "application/json")
	_, err := w.Write(description)
	return err
}
