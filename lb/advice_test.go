package lb

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
)

// TestAdvice: who reads that nginx cannot have an address reads what to do.
func TestAdvice(t *testing.T) {
	for said, want := range map[string]string{
		"bind() to 0.0.0.0:25 failed (98: Address already in use)":        "another program has port 25: ss -ltnp 'sport = :25'",
		"bind() to [::]:8025 failed (98: Address already in use)":         "ss -ltnp 'sport = :8025'",
		"bind() to 192.0.2.9:25 failed (99: Cannot assign requested)":     "192.0.2.9 is no address of this machine",
		"bind() to 0.0.0.0:25 failed (13: Permission denied)":             "ports below 1024 need root or CAP_NET_BIND_SERVICE",
		"bind() to 0.0.0.0:2525 failed (13: Permission denied)":           "",
		"bind() to unix:/run/x failed (98: Address already in use)":       "",
		`unknown directive "bind() to nobody" in /etc/nginx/nginx.conf:1`: "",
	} {
		cause := errors.Join(errors.New(said), fs.ErrPermission)
		got := advise(cause)
		if want == "" && got.Error() != cause.Error() || !strings.Contains(got.Error(), want) || !errors.Is(got, fs.ErrPermission) {
			t.Errorf("%q: %q", said, got)
		}
	}
}
