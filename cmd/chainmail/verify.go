package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"

	"github.com/spf13/cobra"

	"chainmail/archive"
	"chainmail/node"
	"chainmail/node/api"
	"chainmail/node/client"
)

func newVerifyCommand() *cobra.Command {
	var (
		to     target
		format outputFormat
		all    bool
		whole  bool
	)
	cmd := &cobra.Command{
		Use:   "verify [--all | --cluster | ID...]",
		Short: "Read stored mail and compare every SHA-256",
		Long: `Reads every message (or those named) from the disk and compares its bytes with
its SHA-256. It asks the running node, or reads the directory of a stopped one,
and says which. The exit code is 1 when anything is wrong; each bad receipt is
then listed with its position.

With --cluster the members compare what they hold of every log, by digests, and
each position that differs is listed with the member it is on; the exit code is 1
when there is one. What is damaged is mended from a healthy replica by itself.
` + idHelp,
		Example: "  chainmail verify\n  chainmail verify --cluster\n  chainmail verify 3f9a0c1d2e4b",
		RunE: func(cmd *cobra.Command, ids []string) error {
			if all && len(ids) > 0 {
				return usageError{errors.New("--all and IDs do not go together: give one of them")}
			}
			if whole {
				if all || len(ids) > 0 {
					return usageError{errors.New("--cluster compares whole logs: leave out --all and IDs")}
				}
				return verifyCluster(cmd, &to, format)
			}
			report := &verifyReport{out: cmd.OutOrStdout(), notes: cmd.ErrOrStderr(), format: format}
			v, where, err := to.verifier(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			defer v.close()
			fmt.Fprintln(cmd.ErrOrStderr(), where)
			if len(ids) > 0 {
				err = report.each(ids, v)
			} else {
				err = report.everything(cmd.Context(), v)
			}
			if err == nil && report.last.Bad > 0 {
				err = quietError{exitFailed}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "read everything (what happens without an ID)")
	cmd.Flags().BoolVar(&whole, "cluster", false, "compare the replicas of all members")
	addOutputFlag(cmd.Flags(), &format)
	to.addFlags(cmd.Flags())
	return cmd
}

// verifier reads stored mail: over a running node, or a stopped one's files.
type verifier struct {
	all   func(ctx context.Context, report func(api.VerifyEvent)) error
	body  func(id string) (io.ReadCloser, error)
	close func()
}

// verifier finds out whether a node runs, and says so.
func (t *target) verifier(ctx context.Context, notes io.Writer) (v verifier, where string, err error) {
	c, err := t.client()
	if err != nil {
		return v, "", err
	}
	status, err := c.Status(ctx)
	if err == nil {
		v = verifier{
			all: func(ctx context.Context, report func(api.VerifyEvent)) error {
				_, err := c.Verify(ctx, report)
				return err
			},
			body:  func(id string) (io.ReadCloser, error) { return c.Raw(ctx, id) },
			close: c.Close,
		}
		return v, fmt.Sprintf("Verifying through the running node %s (%s).", sanitize(status.Node), sanitize(status.DataDir)), nil
	}
	if t.socket != "" || !errors.Is(err, client.ErrNoNode) {
		return v, "", err
	}
	dir, err := t.directory()
	if err != nil {
		return v, "", err
	}
	if !exists(node.ArchiveDir(dir)) {
		return v, "", fmt.Errorf("no node is running on %s, and there is no archive in it: name the data directory with --data-dir", dir)
	}
	if _, err := actAsOwner(notes, dir); err != nil { // for good: what is left to do is reading
		return v, "", err
	}
	a, err := archive.OpenReadOnly(node.ArchiveDir(dir), slog.New(slog.DiscardHandler))
	if err != nil {
		return v, "", fmt.Errorf("no node is running on %s, and its files cannot be read: %w", dir, err)
	}
	v = verifier{all: offline(a), body: offlineBody(a), close: func() { _ = a.Close() }} // nothing was written
	return v, fmt.Sprintf("No node is running; verifying the files in %s.", dir), nil
}

// offline verifies an archive as the node's own interface would.
func offline(a *archive.Archive) func(context.Context, func(api.VerifyEvent)) error {
	return func(ctx context.Context, report func(api.VerifyEvent)) error {
		var ev api.VerifyEvent
		err := a.Verify(ctx, func(p archive.Progress) {
			ev = api.VerifyEvent{Checked: p.Checked, Total: p.Total, Bytes: p.Bytes, Bad: ev.Bad}
			if f := p.Finding; f != nil {
				ev.Bad++
				ev.Finding = &api.Finding{Position: f.Position.String(), Problem: f.Problem, FoundAt: f.FoundAt}
				if !f.Hash.IsZero() {
					ev.Finding.SHA256 = f.Hash.String()
				}
			}
			report(ev)
		})
		if err != nil {
			return err
		}
		ev.Finding, ev.Done = nil, true
		report(ev)
		return nil
	}
}

func offlineBody(a *archive.Archive) func(id string) (io.ReadCloser, error) {
	return func(id string) (io.ReadCloser, error) {
		hashes, err := a.Resolve(id)
		if err != nil {
			return nil, err
		}
		return a.Body(hashes[0])
	}
}

// verifyReport shows a verification to people or programs.
type verifyReport struct {
	out, notes io.Writer
	format     outputFormat
	last       api.VerifyEvent
}

func (r *verifyReport) everything(ctx context.Context, v verifier) error {
	var bar *progress
	err := v.all(ctx, func(ev api.VerifyEvent) {
		if bar == nil {
			bar = newProgress(r.notes, "verifying", ev.Total)
		}
		bar.set(ev.Checked, ev.Bytes)
		r.event(ev)
	})
	bar.end()
	if err == nil && r.format == formatHuman {
		_, err = fmt.Fprintf(r.out, "%s checked, %s read: %s\n", plural(r.last.Checked, "receipt"), humanSize(r.last.Bytes), verdict(r.last.Bad))
	}
	return err
}

// each reads single messages; what is wrong with one is a finding like those
// of a whole pass.
func (r *verifyReport) each(ids []string, v verifier) error {
	ev := api.VerifyEvent{Total: uint64(len(ids))}
	for _, id := range ids {
		n, err := read(v, id)
		if misnamed(err) {
			return err
		}
		ev.Bytes += n
		ev.Finding = nil
		if err != nil {
			ev.Bad++
			ev.Finding = &api.Finding{Position: id, Problem: err.Error()}
		}
		ev.Checked++
		r.event(ev)
	}
	ev.Finding, ev.Done = nil, true
	r.event(ev)
	if r.format == formatJSON {
		return nil
	}
	_, err := fmt.Fprintf(r.out, "%s checked, %s read: %s\n", plural(ev.Checked, "message"), humanSize(ev.Bytes), verdict(ev.Bad))
	return err
}

func read(v verifier, id string) (int64, error) {
	body, err := v.body(id)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	return io.Copy(io.Discard, body)
}

// misnamed reports whether an ID was at fault, and not a message.
func misnamed(err error) bool {
	if refused, ok := errors.AsType[*client.Error](err); ok {
		return refused.Status < http.StatusInternalServerError
	}
	return errors.Is(err, archive.ErrNotFound) || errors.Is(err, archive.ErrBadID) || errors.Is(err, archive.ErrAmbiguous)
}

func (r *verifyReport) event(ev api.VerifyEvent) {
	r.last = ev
	switch {
	case r.format == formatJSON && (ev.Finding != nil || ev.Done):
		_ = printJSON(r.out, ev)
	case ev.Finding != nil:
		fmt.Fprintf(r.out, "BAD  %s  %s\n", sanitize(ev.Finding.Position), sanitize(ev.Finding.Problem))
	}
}

func verdict(bad uint64) string {
	if bad == 0 {
		return "every message is whole."
	}
	return humanCount(bad) + " BAD, listed above. Other nodes of the cluster send again what they hold: verify once more in a minute. A single node: keep the disk as it is, and look for a copy."
}
