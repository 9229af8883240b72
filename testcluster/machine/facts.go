package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Facts are what figures were taken on, name and value each, for a table or
// JSON: dir is where the data was, program a chainmail.
func Facts(dir, program string) [][]string {
	kind, device := filesystem(dir)
	return [][]string{
		{"date", time.Now().UTC().Format("2006-01-02 15:04 UTC")},
		{"processor", field("/proc/cpuinfo", "model name")},
		{"cores", field("/proc/cpuinfo", "cpu cores") + " (" + strconv.Itoa(runtime.NumCPU()) + " threads), shared by the servers and the load generator"},
		{"memory", field("/proc/meminfo", "MemTotal")},
		{"kernel", read("/proc/sys/kernel/osrelease")},
		{"filesystem", kind + " on " + device},
		{"Go", runtime.Version()},
		{"chainmail", Output(program, "version")},
	}
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

// Output is the first line that a program prints.
func Output(name string, args ...string) string {
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

// MakeDir makes a new directory below parent, which must be on a disk; every
// user may enter it, because some servers run as several.
func MakeDir(parent, prefix string) (string, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(parent, &fs); err != nil {
		return "", fmt.Errorf("%s: %w", parent, err)
	}
	const tmpfs, ramfs = 0x01021994, 0x858458f6
	if fs.Type == tmpfs || fs.Type == ramfs {
		return "", fmt.Errorf("%s is in memory, where a sync costs nothing: give -dir on a real disk", parent)
	}
	dir, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// DiskUsage is the space of all files below dir, as du counts it.
func DiskUsage(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum, err
}
