package mailtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Program finds a program of a Debian package: see Missing.
func Program(t testing.TB, name, debianPackage string) string {
	t.Helper()
	for _, name := range []string{name, filepath.Join("/usr/sbin", name)} { // sbin is not in everybody's PATH
		if file, err := exec.LookPath(name); err == nil {
			return file
		}
	}
	Missing(t, debianPackage)
	return ""
}

// Missing ends a test that needs a Debian package. It is skipped; where make test
// has installed all packages, it fails.
func Missing(t testing.TB, debianPackage string) {
	t.Helper()
	if os.Getenv(RequireVariable) == "1" && os.Geteuid() == 0 {
		t.Fatalf("install the Debian package %s, or unset %s", debianPackage, RequireVariable)
	}
	t.Skipf("NOT CHECKED by the real program: install the Debian package %s", debianPackage)
}
