package node

import (
	"context"
	"errors"
	"fmt"
)

// part is something that runs until its context ends.
type part struct {
	name string
	run  func(context.Context) error
}

// runStack starts parts in their order and, when ctx ends or any of them
// returns, stops them in the reverse, each after those above it are done. It
// owns all their goroutines: none is left when it returns.
func runStack(ctx context.Context, parts []part) error {
	type running struct {
		stop context.CancelFunc
		done chan error
	}
	ended := make(chan struct{}, len(parts))
	stack := make([]running, len(parts))
	for i, p := range parts {
		// A part must outlive ctx: it may be needed by one above it.
		own, stop := context.WithCancel(context.WithoutCancel(ctx))
		stack[i] = running{stop, make(chan error, 1)}
		go func() {
			stack[i].done <- p.run(own)
			ended <- struct{}{}
		}()
	}
	select {
	case <-ctx.Done():
	case <-ended:
	}
	var errs []error
	for i := len(stack) - 1; i >= 0; i-- {
		stack[i].stop()
		if err := <-stack[i].done; err != nil && !errors.Is(err, context.Canceled) {
			errs = append(errs, fmt.Errorf("%s: %w", parts[i].name, err))
		}
	}
	return errors.Join(errs...)
}
