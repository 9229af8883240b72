package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"chainmail/node"
)

func newConfigCommand() *cobra.Command {
	return group("config", "Check the configuration", newConfigCheckCommand())
}

func newConfigCheckCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Validate the configuration and print the effective one",
		Long: `Reads the configuration as "chainmail node" would, checks every value, and
prints the effective configuration as YAML. Each problem is one line on standard
error, and the exit code is then 2. Nothing is opened or changed.`,
		Example: "  chainmail config check --config /etc/chainmail/chainmail.yaml",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := checkedConfig(file, cmd.Flags())
			if err != nil {
				return err
			}
			text, err := configYAML(config)
			if err == nil {
				_, err = fmt.Fprint(cmd.OutOrStdout(), text)
			}
			return err
		},
	}
	addConfigFlag(cmd.Flags(), &file)
	return cmd
}

func addConfigFlag(flags *pflag.FlagSet, file *string) {
	flags.StringVar(file, "config", "", "configuration `FILE` (default the first that exists: DIRECTORY/"+ownConfig+" of a data directory that was named, "+systemConfig+", else "+filepath.Join(defaultDirectory, ownConfig)+")")
}

// checkedConfig returns the effective configuration, or every problem of it:
// those of its form and those of its values together.
func checkedConfig(file string, flags *pflag.FlagSet) (node.Config, error) {
	config, form, err := loadConfig(file, flags)
	if err != nil {
		return config, err
	}
	values, _ := errors.AsType[node.Problems](config.Validate())
	if all := merge(form, values); len(all) > 0 {
		return config, all
	}
	return config, nil
}

// merge leaves out what Validate says of a key whose form was refused already,
// and of the keys inside it.
func merge(form, values node.Problems) node.Problems {
	all := slices.Clone(form)
	for _, p := range values {
		inside := func(refused node.Problem) bool {
			rest, ok := strings.CutPrefix(p.Key, refused.Key)
			return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
		}
		if !slices.ContainsFunc(form, inside) {
			all = append(all, p)
		}
	}
	return all
}
