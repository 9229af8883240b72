package node

import "testing"

func TestReachableAt(t *testing.T) {
	for _, test := range []struct{ bound, told, want string }{
		{"192.0.2.1:8091", "", "192.0.2.1:8091"},
		{"192.0.2.1:8091", "archive-1.example.com", "archive-1.example.com:8091"},
		{"0.0.0.0:8091", "198.51.100.7:9000", "198.51.100.7:9000"},
		{"[2001:db8::1]:8091", "", "[2001:db8::1]:8091"},
		{":8091", "", machineAddress() + ":8091"},
	} {
		if got, err := reachableAt(test.bound, test.told); err != nil || got != test.want {
			t.Errorf("reachableAt(%q, %q) = %q, %v; want %q", test.bound, test.told, got, err, test.want)
		}
	}
}
