package httpd

import (
	"context"
	"net/http"
	"strings"

	"chainmail/archive/record"
	"chainmail/node/api"
)

// Routes are a node's routes to foreign mail servers.
type Routes interface {
	Routes() []api.Route
	// Parked lists what the target of a route refused for good.
	Parked(ctx context.Context, route string) ([]api.Parked, error)
	// Retry sends parked receipts again, all when none are named, and says how
	// many there were.
	Retry(ctx context.Context, route string, positions []record.Position) (int, error)
}

func (s *Server) routesOf() []api.Route {
	if s.opts.Routes == nil {
		return nil
	}
	return s.opts.Routes.Routes()
}

// routeNamed makes sure that there is such a route.
func (s *Server) routeNamed(name string) error {
	var names []string
	for _, rt := range s.routesOf() {
		if rt.Name == name {
			return nil
		}
		names = append(names, rt.Name)
	}
	if len(names) == 0 {
		return notFound("this node has no routes").hint("they are made in the configuration of each node, under routes")
	}
	return notFound("this node has no route %q", name).hint("its routes are %s", strings.Join(names, ", "))
}

func (s *Server) listRoutes(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, api.RouteList{Routes: list(s.routesOf())})
	return nil
}

func (s *Server) listParked(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("name")
	if err := s.routeNamed(name); err != nil {
		return err
	}
	parked, err := s.opts.Routes.Parked(r.Context(), name)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, api.ParkedList{Parked: list(parked)})
	return nil
}

func (s *Server) retryRoute(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("name")
	if err := s.routeNamed(name); err != nil {
		return err
	}
	var req api.RetryRequest
	if err := s.readJSON(w, r, &req, `{"positions":["4f2a9c1be0d37786:42"]}`); err != nil {
		return err
	}
	positions := make([]record.Position, len(req.Positions))
	for i, text := range req.Positions {
		var err error
		if positions[i], err = record.ParsePosition(text); err != nil {
			return badRequest("positions: %v", err).hint("'chainmail route parked %s' lists them", name)
		}
	}
	n, err := s.opts.Routes.Retry(r.Context(), name, positions)
	if err != nil {
		return err
	}
	s.opts.Logger.Info("parked mail is sent again", "route", name, "count", n)
	writeJSON(w, http.StatusOK, api.Retried{Retried: n})
	return nil
}
