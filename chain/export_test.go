package chain

import "testing"

// For the tests of the public face.
var ReadContainer = readAll

// SampleContainer is a container with all kinds of frames.
func SampleContainer(t testing.TB) []byte {
	all, _ := testContainer(t, 1<<20, nil)
	return all
}
