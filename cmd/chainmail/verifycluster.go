package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"chainmail/node/api"
)

// verifyCluster lets the node compare all replicas, and fails quietly when
// something differs.
func verifyCluster(cmd *cobra.Command, to *target, format outputFormat) error {
	c, err := to.client()
	if err != nil {
		return err
	}
	defer c.Close()
	report := clusterReport{out: cmd.OutOrStdout(), format: format}
	var bar *progress
	last, err := c.VerifyCluster(cmd.Context(), func(ev api.ClusterVerifyEvent) {
		if bar == nil && ev.Total > 0 {
			bar = newProgress(cmd.ErrOrStderr(), "comparing", ev.Total)
		}
		bar.setCount(ev.Checked)
		report.event(ev)
	})
	bar.end()
	if err != nil {
		return err
	}
	if format == formatHuman {
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s compared (each replica counts): %s\n", plural(last.Checked, "receipt"), clusterVerdict(last.Bad))
	}
	if err == nil && last.Bad > 0 {
		err = quietError{exitFailed}
	}
	return err
}

type clusterReport struct {
	out    io.Writer
	format outputFormat
}

func (r clusterReport) event(ev api.ClusterVerifyEvent) {
	switch {
	case r.format == formatJSON && (ev.Problem != "" || ev.Done):
		_ = printJSON(r.out, ev)
	case ev.Problem == "" || r.format == formatJSON:
	case len(ev.At) == 0:
		fmt.Fprintf(r.out, "DIFFERS  %s  %s\n", sanitize(ev.Node), sanitize(ev.Problem))
	default:
		for _, at := range ev.At {
			fmt.Fprintf(r.out, "DIFFERS  %s  %s  %s\n", sanitize(ev.Node), sanitize(at), sanitize(ev.Problem))
		}
	}
}

func clusterVerdict(bad uint64) string {
	if bad == 0 {
		return "all replicas are the same."
	}
	return humanCount(bad) + " DIFFER, listed above. What is damaged is repaired from a healthy replica in the background: repeat in some minutes."
}
