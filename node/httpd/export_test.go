package httpd

import (
	"context"

	"chainmail/node/api"
)

// RouteInfo is what tests may know of a route.
type RouteInfo struct {
	Pattern string
	Open    bool
	Admin   bool
	Nodes   bool // for nodes only
	Query   []string
}

func (s *Server) RouteInfos() []RouteInfo {
	var infos []RouteInfo
	for _, rt := range s.routes() {
		infos = append(infos, RouteInfo{rt.pattern, rt.access == open, rt.access == admin, rt.access == peer || rt.access == joiner, rt.query})
	}
	return infos
}

// ClusterPoll is clusterPoll.
type ClusterPoll struct{ *clusterPoll }

func NewClusterPoll() ClusterPoll { return ClusterPoll{newClusterPoll()} }

func (p ClusterPoll) Get(ctx context.Context, ask func(context.Context) (api.Cluster, error)) (api.Cluster, error) {
	return p.get(ctx, ask)
}

func (p ClusterPoll) End() { p.end() }
