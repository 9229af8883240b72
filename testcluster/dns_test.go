package testcluster_test

import (
	"path/filepath"
	"strings"
	"testing"

	"chainmail/testcluster/support"
)

// TestZone: what "lb dns" prints is part of a zone to the program that name
// servers check theirs with.
func TestZone(t *testing.T) {
	check := lookFor(t, "named-checkzone", "bind9-utils")
	c := config(t)
	c.Name = "archive_1-.-.b"
	smtp := awaitAddress(t, support.Start(t, c))
	records, err := chainmail(t, "lb", "dns", "--domain", "archive.example.com", "--also", "archive_1-.-.b=2001:db8::1", "--data-dir", c.DataDir).Output()
	if err != nil {
		t.Fatal(err)
	}
	zone := filepath.Join(t.TempDir(), "zone")
	writeFile(t, zone, "@ 300 IN SOA ns1 hostmaster 1 3600 600 604800 300\n@ 300 IN NS ns1\nns1 300 IN A 192.0.2.53\n"+string(records))
	// It prints the zone as it understood it, and fails when a name is none or has
	// no address.
	loaded := sends(t, nil, check, "-i", "local-sibling", "-m", "fail", "-M", "fail", "-S", "fail", "-n", "fail", "-k", "fail", "-r", "fail", "-D", "-q", "archive.example.com", zone)
	loaded = strings.Join(strings.Fields(loaded), " ")
	for _, want := range []string{
		"archive.example.com. 300 IN MX 10 archive-1.b.archive.example.com.",
		"_smtp._tcp.archive.example.com. 300 IN SRV 10 10 " + smtp + " archive-1.b.archive.example.com.",
		"archive-1.b.archive.example.com. 300 IN A 127.0.0.1",
		"archive-1.b.archive.example.com. 300 IN AAAA 2001:db8::1",
	} {
		if !strings.Contains(loaded, want) {
			t.Errorf("%q is not in the zone:\n%s", want, loaded)
		}
	}
}
