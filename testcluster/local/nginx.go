package local

import (
	"context"
	"errors"

	"chainmail/lb"
)

// NeedNginx says what a balancer on this machine lacks; nil: nothing.
func NeedNginx() error {
	if _, err := lb.FindProgram("nginx"); err != nil {
		return errors.New("the balancer is nginx, which is not here: install the Debian packages nginx and libnginx-mod-stream, or do without the balancer")
	}
	_, err := lb.DetectNginx(context.Background(), "nginx")
	return err
}
