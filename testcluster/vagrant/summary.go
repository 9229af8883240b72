package main

import (
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"chainmail/testcluster/load"
)

// result is what became of a step.
type result struct {
	step
	err    error
	took   time.Duration
	report load.Report
	gap    time.Duration // the longest without an acknowledged mail
	gapAt  time.Time
	healed time.Duration // from the repair to green
}

// table is the summary of all steps.
func table(results []result) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STEP\tRESULT\tTOOK\tACKNOWLEDGED\t4XX\tNO ANSWER\tLONGEST GAP\tGREEN AFTER\tWHAT")
	for _, r := range results {
		if errors.Is(r.err, errNotReached) {
			fmt.Fprintf(w, "%s\tnot reached\t-\t-\t-\t-\t-\t-\t%s\n", r.name, r.title)
			continue
		}
		outcome := "passed"
		if r.err != nil {
			outcome = "FAILED"
		}
		fmt.Fprintf(w, "%s\t%s\t%.0f s\t%d\t%d\t%d\t%s\t%s\t%s\n", r.name, outcome, r.took.Seconds(),
			r.report.Acked, r.report.Tempfailed, r.report.Unanswered, seconds(r.gap), seconds(r.healed), r.title)
	}
	_ = w.Flush() // to memory
	return b.String()
}

// verdict is the error of the first step that failed.
func verdict(results []result) error {
	for _, r := range results {
		if r.err != nil {
			return fmt.Errorf("step %s: %w", r.name, r.err)
		}
	}
	return nil
}
