// Command chainmail is a highly available e-mail archive: the node that takes
// mail, and the commands that find, read, export and verify it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"
)

// version is set by the linker (see the Makefile).
var version = "devel"

func main() {
	// A panic ends the process by a signal then, and not with 2: that is the
	// code of a wrong configuration, after which no supervisor starts it again.
	debug.SetTraceback("crash")
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go obey(signals, cancel)
	os.Exit(run(ctx, os.Args[1:], streams{os.Stdin, os.Stdout, os.Stderr}))
}

// echo is how long a second signal counts as the first one: make, timeout and
// others signal a process group, and then each of its processes.
const echo = time.Second

// obey asks for an orderly end at the first signal and ends the process at the
// second, with the exit code that shells give to the signal.
func obey(signals <-chan os.Signal, cancel context.CancelCauseFunc) {
	cancel(fmt.Errorf("stopped by a signal (%s)", <-signals))
	for first := time.Now(); ; {
		number, ok := (<-signals).(syscall.Signal)
		if ok && time.Since(first) > echo {
			os.Exit(128 + int(number))
		}
	}
}
