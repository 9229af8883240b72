// Package ring holds the committed view of a cluster and the decisions that
// follow from it: who keeps a log, who sends to whom, who votes, who may stop.
// They are pure functions of values, so that every node comes to the same
// answer from the same view.
package ring

import (
	"cmp"
	"hash/fnv"
	"reflect"
	"slices"
	"time"
)

// Epoch numbers the committed views of a cluster. It only grows.
type Epoch uint64

// State is where a member stands in its life.
type State string

// The states of a member. A member that left is in no view.
const (
	Joining  State = "joining"  // takes live mail, is still given the history
	Active   State = "active"   // holds what it should
	Draining State = "draining" // takes no new mail; its copies move to others
)

// Role is what a member does.
type Role string

// The roles.
const (
	Data    Role = "data"    // keeps mail, is in the ring
	Witness Role = "witness" // votes only
)

// WhenShort says what a client is told when the copies cannot be had in time.
type WhenShort string

// The answers.
const (
	Accept   WhenShort = "accept"   // 250, counted and shown as short
	Tempfail WhenShort = "tempfail" // 451; the client tries again
)

// Addresses are where the other nodes and clients reach a member, each
// "host:port"; a witness has no SMTP and Chain.
type Addresses struct {
	SMTP   string `json:"smtp,omitempty"`
	Chain  string `json:"chain,omitempty"`
	Gossip string `json:"gossip"`
	Raft   string `json:"raft"`
	HTTP   string `json:"http"`
}

// Member is one node of the cluster.
type Member struct {
	Name string `json:"name"` // unique, stable
	// ID is random and made anew when a node joins or replaces another: it is
	// the member's identity in Raft.
	ID        string    `json:"id"`
	Role      Role      `json:"role"`
	State     State     `json:"state"`
	Addresses Addresses `json:"addresses"`
	// Certificates are the SHA-256, in hexadecimal, of the certificates by
	// which the member is known; two while one takes the other's place.
	Certificates []string  `json:"certificates"`
	Version      string    `json:"version"` // of its program when it last started
	JoinedAt     time.Time `json:"joined_at"`
}

// Policies are what must be the same on every node.
type Policies struct {
	Copies    int       `json:"copies"`   // synced copies before 250, the own one included; fewer where the cluster is smaller
	Replicas  int       `json:"replicas"` // nodes that keep each log; 0: all
	WhenShort WhenShort `json:"when_short"`
	// AckTimeout bounds how long a 250 waits for copies, in nanoseconds.
	AckTimeout time.Duration `json:"ack_timeout"`
	// BackfillRate bounds what one node sends another to catch up, in bytes of
	// stored mail a second; 0: no bound but live mail's precedence.
	BackfillRate int64 `json:"backfill_rate"`
	// Balancers are those whose word on a client's address is believed: IP
	// addresses and blocks of them, as ParseBalancers writes them.
	Balancers []string `json:"balancers,omitempty"`
}

// Equal reports whether two policies are the same.
func (p Policies) Equal(o Policies) bool {
	if !slices.Equal(p.Balancers, o.Balancers) {
		return false
	}
	p.Balancers, o.Balancers = nil, nil
	return reflect.DeepEqual(p, o)
}

// DefaultPolicies are those of a new cluster.
func DefaultPolicies() Policies {
	return Policies{Copies: 2, Replicas: 3, WhenShort: Accept, AckTimeout: 5 * time.Second}
}

// View is the committed state of a cluster at an epoch. It is immutable:
// share it, never change it.
type View struct {
	Cluster  string   `json:"cluster"` // random identity, 32 hexadecimal digits
	Epoch    Epoch    `json:"epoch"`
	Members  []Member `json:"members"` // data members in the order of the ring; witnesses anywhere
	Policies Policies `json:"policies"`
}

// Member finds a member by name.
func (v View) Member(name string) (Member, bool) {
	i := slices.IndexFunc(v.Members, func(m Member) bool { return m.Name == name })
	if i < 0 {
		return Member{}, false
	}
	return v.Members[i], true
}

// Ring is the names of the data members in the order of the ring.
func (v View) Ring() []string {
	var names []string
	for _, m := range v.Members {
		if m.Role == Data {
			names = append(names, m.Name)
		}
	}
	return names
}

// From is the ring turned so that it begins with name. For a name that is not
// in it, the same one of the members is first on every node, and different
// names are spread over them.
func (v View) From(name string) []string {
	names := v.Ring()
	if len(names) == 0 {
		return nil
	}
	i := slices.Index(names, name)
	if i < 0 {
		h := fnv.New32a()
		h.Write([]byte(name))
		i = int(h.Sum32() % uint32(len(names)))
	}
	return append(slices.Clone(names[i:]), names[:i]...)
}

// Successor is the next node in the ring after name; empty when there is no
// other.
func (v View) Successor(name string) string {
	if order := v.From(name); len(order) > 1 {
		return order[1]
	}
	return ""
}

// replicas is how many nodes keep each log.
func (v View) replicas() int {
	return cmp.Or(v.Policies.Replicas, len(v.Members))
}

// Keepers are the nodes that must hold receipts of a log of origin that were
// placed on the nodes placed: those of them that still are members, and when
// that is fewer than the replicas, the next ones in the ring. So a changed
// ring moves no history that has its replicas. A draining member keeps
// nothing. With no placed nodes they are the keepers of new receipts. The
// order is that of the ring, from origin on.
func (v View) Keepers(origin string, placed []string) []string {
	var stay, fill []string
	order := v.From(origin)
	for _, name := range order {
		switch m, _ := v.Member(name); {
		case m.State == Draining:
		case slices.Contains(placed, name):
			stay = append(stay, name)
		default:
			fill = append(fill, name)
		}
	}
	r := v.replicas()
	stay = stay[:min(len(stay), r)]
	keepers := append(stay, fill[:min(len(fill), r-len(stay))]...)
	slices.SortFunc(keepers, func(a, b string) int {
		return cmp.Compare(slices.Index(order, a), slices.Index(order, b))
	})
	return keepers
}

// Copies is how many synced copies a 250 of origin waits for: the policy's,
// or all of the keepers where they are fewer.
func (v View) Copies(origin string) int {
	return min(v.Policies.Copies, max(1, len(v.Keepers(origin, nil))))
}

// Feeders orders the live keepers that may send another keeper what it lacks:
// the one before it first, and so on backwards around the keepers. The first
// sends at once; each further one only when those before it do not. Members
// that hold copies without being keepers come after all of them; package chain
// adds those, because who they are depends on what they hold.
func Feeders(keepers []string, to string, live func(name string) bool) []string {
	var feeders []string
	at := slices.Index(keepers, to)
	if at < 0 {
		return nil
	}
	for i := 1; i < len(keepers); i++ {
		if name := keepers[(at-i+len(keepers))%len(keepers)]; live(name) {
			feeders = append(feeders, name)
		}
	}
	return feeders
}
