package lb

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Debian's packages, which messages name.
const (
	packageNginx  = "nginx"
	packageStream = "libnginx-mod-stream"
)

// FindProgram finds a program, also in the places that only root has in its
// PATH.
func FindProgram(name string) (string, error) {
	if strings.ContainsRune(name, '/') {
		return exec.LookPath(name)
	}
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/usr/local/sbin/" + name} {
		if file, err := exec.LookPath(candidate); err == nil {
			return filepath.Abs(file)
		}
	}
	return "", fmt.Errorf("%s is not on this machine", name)
}

// DetectNginx asks an nginx for its version and modules. Paths of what it writes
// are left as Debian has them.
func DetectNginx(ctx context.Context, program string) (Nginx, error) {
	file, err := FindProgram(program)
	if err != nil {
		return Nginx{}, fmt.Errorf("%w: install it, on Debian with 'apt-get install %s %s'", err, packageNginx, packageStream)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, file, "-V").CombinedOutput()
	if err != nil {
		return Nginx{}, fmt.Errorf("%s -V: %w%s", file, err, said(out))
	}
	n, err := parseNginx(string(out))
	if err != nil {
		return n, fmt.Errorf("%s: %w", file, err)
	}
	if n.StreamModule != "" {
		if _, err := os.Stat(n.StreamModule); err != nil {
			return n, fmt.Errorf("%s has no stream module (%s is missing), without which it cannot pass on mail: install it, on Debian with 'apt-get install %s'", file, n.StreamModule, packageStream)
		}
	}
	return n, nil
}

var (
	versionLine   = regexp.MustCompile(`(?m)^nginx version: \S+/(\d+\.\d+\.\d+)`)
	argumentsLine = regexp.MustCompile(`(?m)^configure arguments: (.*)$`)
)

// parseNginx reads what nginx -V says.
func parseNginx(out string) (Nginx, error) {
	n := DebianNginx()
	v := versionLine.FindStringSubmatch(out)
	if v == nil {
		return n, errors.New("it does not say which version of nginx it is: name nginx's program with --nginx")
	}
	var err error
	if n.Version, err = ParseVersion(v[1]); err != nil {
		return n, err
	}
	var arguments []string
	if a := argumentsLine.FindStringSubmatch(out); a != nil {
		arguments = strings.Fields(a[1])
	}
	value := func(name, otherwise string) string {
		for _, a := range arguments {
			if v, ok := strings.CutPrefix(a, name+"="); ok {
				return v
			}
		}
		return otherwise
	}
	n.HTTP2 = slices.Contains(arguments, "--with-http_v2_module")
	switch {
	case slices.Contains(arguments, "--with-stream"):
		n.StreamModule = ""
	case slices.Contains(arguments, "--with-stream=dynamic"):
		prefix := value("--prefix", "/usr/local/nginx")
		n.StreamModule = filepath.Join(value("--modules-path", filepath.Join(prefix, "modules")), "ngx_stream_module.so")
	default:
		return n, errors.New("it was built without the stream module, which passes on mail: use one that has it, such as Debian's with " + packageStream)
	}
	return n, nil
}
