package membership

import (
	"github.com/prometheus/client_golang/prometheus"

	"chainmail/membership/ring"
)

var (
	descEpoch    = prometheus.NewDesc("chainmail_cluster_epoch", "Number of the committed view that this node knows. A node that stays behind the others does not learn of changes.", nil, nil)
	descMembers  = prometheus.NewDesc("chainmail_cluster_members", "Members of the cluster by role and state.", []string{"role", "state"}, nil)
	descAlive    = prometheus.NewDesc("chainmail_cluster_member_alive", "1 for a member that this node takes for alive, 0 for one that it does not.", []string{"peer"}, nil)
	descVoter    = prometheus.NewDesc("chainmail_cluster_member_voter", "1 for a member that votes on changes of the cluster, 0 for one that does not.", []string{"peer"}, nil)
	descLeader   = prometheus.NewDesc("chainmail_cluster_leader", "1 on the node that makes the changes of the cluster, 0 on the others.", nil, nil)
	descQuorum   = prometheus.NewDesc("chainmail_cluster_quorum", "1 when the cluster can be changed: enough voters are alive and a leader is known. Mail flows without it.", nil, nil)
	descProblems = prometheus.NewDesc("chainmail_cluster_problems", "Things that are wrong with this node's part in the cluster; 'chainmail status' names them.", nil, nil)
	descRotating = prometheus.NewDesc("chainmail_cluster_rotating_keys", "1 while the cluster's keys are being replaced.", nil, nil)
)

// collector reads the figures when they are asked for.
type collector struct{ m *Membership }

// Describe and Collect are those of prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descEpoch, descMembers, descAlive, descVoter, descLeader, descQuorum, descProblems, descRotating} {
		ch <- d
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	view := c.m.View()
	votes := map[string]bool{}
	for _, name := range c.m.Voters() {
		votes[name] = true
	}
	type kind struct {
		role  ring.Role
		state ring.State
	}
	count := map[kind]int{}
	for _, m := range view.Members {
		count[kind{m.Role, m.State}]++
		gauge(descAlive, truth(c.m.Alive(m.Name)), m.Name)
		gauge(descVoter, truth(votes[m.Name]), m.Name)
	}
	for k, n := range count {
		gauge(descMembers, float64(n), string(k.role), string(k.state))
	}
	leader := c.m.Leader()
	gauge(descEpoch, float64(view.Epoch))
	gauge(descLeader, truth(leader == c.m.name))
	gauge(descQuorum, truth(leader != ""))
	gauge(descProblems, float64(len(c.m.Problems())))
	gauge(descRotating, truth(c.m.Rotating() != ""))
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
