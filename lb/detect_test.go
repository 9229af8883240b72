package lb_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chainmail/lb"
)

// TestDetectNginx: what builds of nginx say of themselves.
func TestDetectNginx(t *testing.T) {
	dir := t.TempDir()
	module := filepath.Join(dir, "modules", "ngx_stream_module.so")
	if err := os.Mkdir(filepath.Dir(module), 0o700); err != nil {
		t.Fatal(err)
	}
	detect := func(says string) (lb.Nginx, error) {
		file := filepath.Join(dir, "nginx")
		if err := os.WriteFile(file, []byte("#!/bin/sh\ncat >&2 <<END\n"+says+"\nEND\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		return lb.DetectNginx(t.Context(), file)
	}
	debian := "nginx version: nginx/1.22.1\nconfigure arguments: --with-cc-opt='-g -O2' --modules-path=" + filepath.Dir(module) + " --with-http_v2_module --with-stream=dynamic"
	if _, err := detect(debian); err == nil || !strings.Contains(err.Error(), "apt-get install libnginx-mod-stream") {
		t.Error(err)
	}
	if err := os.WriteFile(module, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := detect(debian); err != nil || n.StreamModule != module || n.Version.String() != "1.22.1" || !n.HTTP2 {
		t.Error(n, err)
	}
	if n, err := detect("nginx version: nginx/1.29.6\nconfigure arguments: --with-stream --with-stream_ssl_module"); err != nil || n.StreamModule != "" || n.HTTP2 {
		t.Error(n, err)
	}
	if n, err := detect("nginx version: openresty/1.27.1\nconfigure arguments: --prefix=" + dir + " --with-stream=dynamic"); err != nil || n.StreamModule != module {
		t.Error(n, err)
	}
	for says, want := range map[string]string{
		"nginx version: nginx/1.22.1\nconfigure arguments: --with-stream_ssl_module": "without the stream module",
		"something else": "which version",
	} {
		if _, err := detect(says); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := lb.DetectNginx(t.Context(), "no-such-nginx"); err == nil || !strings.Contains(err.Error(), "apt-get install nginx libnginx-mod-stream") {
		t.Error(err)
	}
}
