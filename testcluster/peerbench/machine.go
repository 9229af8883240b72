package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// machine prints what the figures were taken on.
func (b *bench) machine() error {
	kind, device := filesystem(b.dir)
	b.printf("# Measured by `peerbench`\n\n")
	b.table([]string{"machine", ""}, [][]string{
		{"date", time.Now().UTC().Format("2006-01-02 15:04 UTC")},
		{"processor", field("/proc/cpuinfo", "model name")},
		{"cores", field("/proc/cpuinfo", "cpu cores") + " (" + itoa(runtime.NumCPU()) + " threads), shared by the servers and the load generator"},
		{"memory", field("/proc/meminfo", "MemTotal")},
		{"kernel", read("/proc/sys/kernel/osrelease")},
		{"filesystem", kind + " on " + device},
		{"Go", runtime.Version()},
		{"Postfix", output("postconf", "-dh", "mail_version")},
		{"chainmail", output(b.binary, "version")},
		{"each rate", "median of " + itoa(b.rounds) + " interleaved rounds of " + b.time.String()},
	})
	return nil
}

func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// field is the value of the first "name : value" of a file.
func field(path, name string) string {
	for line := range strings.Lines(read(path)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

func output(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return "not on this machine"
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(first)
}

// filesystem is the kind and the device of the mount that holds dir: of those
// in /proc/self/mounts the one with the longest path above it.
func filesystem(dir string) (kind, device string) {
	kind, device = "unknown", "unknown"
	longest := -1
	for line := range strings.Lines(read("/proc/self/mounts")) {
		f := strings.Fields(line)
		if len(f) < 4 || len(f[1]) <= longest {
			continue
		}
		if rel, err := filepath.Rel(f[1], dir); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
			kind, device, longest = f[2]+" ("+f[3]+")", f[0], len(f[1])
		}
	}
	return kind, device
}
