package main

import (
	"slices"

	"chainmail/testcluster/machine"
)

// machine prints what the figures were taken on.
func (b *bench) machine() error {
	b.printf("# Measured by `peerbench`\n\n")
	b.table([]string{"machine", ""}, slices.Concat(machine.Facts(b.dir, b.binary), [][]string{
		{"Postfix", machine.Output("postconf", "-dh", "mail_version")},
		{"each rate", "median of " + itoa(b.rounds) + " interleaved rounds of " + b.time.String()},
	}))
	return nil
}
