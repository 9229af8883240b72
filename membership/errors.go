package membership

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The kinds of failed changes, for errors.Is. The error's text says what to do.
var (
	// ErrRefused is every change that the cluster looked at and does not make.
	ErrRefused = errors.New("refused")
	// ErrNotMember: the named node is not in the view. Also an ErrRefused.
	ErrNotMember = errors.New("not a member")
	// ErrNameTaken: a joiner's name is in use. Also an ErrRefused.
	ErrNameTaken = errors.New("name taken")
	// ErrToken: a join token is unknown, expired, used or no token at all.
	// Also an ErrRefused.
	ErrToken = errors.New("join token refused")
	// ErrAPIToken: an API token opens nothing.
	ErrAPIToken = errors.New("API token refused")
	// ErrNoAPIToken: there is no API token with that ID. Also an ErrRefused.
	ErrNoAPIToken = errors.New("no such API token")
	// ErrNoQuorum: no leader could be had in time.
	ErrNoQuorum = errors.New("no quorum")
	// ErrUnknownOutcome: the change was handed over, but whether it was made is
	// not known. The view tells.
	ErrUnknownOutcome = errors.New("outcome unknown")
	// ErrExists: the directory belongs to a cluster already.
	ErrExists = errors.New("belongs to a cluster already")
	// ErrNoCluster: the directory belongs to no cluster.
	ErrNoCluster = errors.New("belongs to no cluster")
	// ErrInUse: another process uses the directory.
	ErrInUse = errors.New("in use")
)

// reason is the kind of a refusal as it travels between nodes.
type reason string

const (
	reasonRefused   reason = "refused"
	reasonNotMember reason = "not_member"
	reasonNameTaken reason = "name_taken"
	reasonToken     reason = "token"
	// reasonNoAPIToken: no API token has that ID.
	reasonNoAPIToken reason = "no_api_token"
)

// refusal is a change that the cluster does not make.
type refusal struct {
	Reason reason `json:"reason"`
	Text   string `json:"text"`
}

func refuse(r reason, format string, args ...any) *refusal {
	return &refusal{r, fmt.Sprintf(format, args...)}
}

func (r *refusal) Error() string { return r.Text }

// Is makes errors.Is find the kind.
func (r *refusal) Is(target error) bool {
	switch target {
	case ErrRefused:
		return true
	case ErrNotMember:
		return r.Reason == reasonNotMember
	case ErrNameTaken:
		return r.Reason == reasonNameTaken
	case ErrToken:
		return r.Reason == reasonToken
	case ErrNoAPIToken:
		return r.Reason == reasonNoAPIToken
	}
	return false
}

func notMember(name string, members []string) *refusal {
	return refuse(reasonNotMember, "%s is not a member of this cluster: its members are %s", name, strings.Join(members, ", "))
}

// textError has a kind for errors.Is and a text of its own.
type textError struct {
	kind error
	text string
}

func (e *textError) Error() string { return e.text }
func (e *textError) Unwrap() error { return e.kind }

func fail(kind error, format string, args ...any) error {
	return &textError{kind, fmt.Sprintf(format, args...)}
}

// noQuorum explains why nothing can be changed now. begun: the change may have
// reached a log, and may still come into effect.
func noQuorum(voters []string, alive func(string) bool, begun bool) error {
	var here, missing []string
	for _, v := range slices.Sorted(slices.Values(voters)) {
		if alive(v) {
			here = append(here, v)
		} else {
			missing = append(missing, v)
		}
	}
	var b strings.Builder
	b.WriteString("no leader: a change needs a majority of the voters")
	list := func(what string, names []string) {
		if len(names) > 0 {
			fmt.Fprintf(&b, "%s %s", what, strings.Join(names, ", "))
		}
	}
	list("; alive:", here)
	list("; missing:", missing)
	b.WriteString("; mail flows all the same. ")
	switch {
	case len(here) > len(missing):
		b.WriteString("Enough voters are alive: they are electing a leader, try again in a few seconds")
	default:
		b.WriteString("Start the missing ones; if they will never come back, see 'chainmail recover --i-lost-the-quorum'")
	}
	if begun {
		b.WriteString(". The change was handed over before the leader was lost and may still come into effect: look at the cluster's status before asking again")
		return &textError{errors.Join(ErrNoQuorum, ErrUnknownOutcome), b.String()}
	}
	return &textError{ErrNoQuorum, b.String()}
}
