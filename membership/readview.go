package membership

import "chainmail/membership/ring"

// ReadView is the last committed view that a cluster directory knows; for a
// node that does not run.
func ReadView(dir string) (ring.View, error) {
	s, err := readState(dir)
	return s.View, err
}
