package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"chainmail/node"
)

// systemLBConfig is read when no file is named; tests put something else here.
var systemLBConfig = "/etc/chainmail/lb.yaml"

// lbSample is where the packages put a file with every key.
const lbSample = "/usr/share/doc/chainmail/examples/lb.yaml"

const lbEnvPrefix = envPrefix + "_LB_"

func addLBConfigFlag(flags *pflag.FlagSet) {
	flags.String("config", "", "configuration `FILE`, whose keys are the names of the flags (default "+systemLBConfig+" when it exists)")
}

// lbOutside are the flags that are no settings.
var lbOutside = []string{"config", "help", "output"}

// completeLB gives the flags that are not on the command line their values of
// the environment or the file, and refuses what it does not know. The file may
// hold settings of all the lb commands.
func completeLB(cmd *cobra.Command) error {
	known := lbKeys(cmd.Parent())
	settings, problems, err := readLBFile(cmd.Flags(), known)
	if err != nil {
		return err
	}
	for _, variable := range os.Environ() {
		name, value, _ := strings.Cut(variable, "=")
		rest, ok := strings.CutPrefix(name, lbEnvPrefix)
		if !ok {
			continue
		}
		key := strings.ToLower(strings.ReplaceAll(rest, "_", "-"))
		if !slices.Contains(known, key) {
			problems = append(problems, node.Problem{Key: name, What: "unknown environment variable", Value: value, Do: lbSuggestion(key, known)})
			continue
		}
		settings[key] = lbSetting{name, []string{value}}
	}
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		f := cmd.Flags().Lookup(key)
		if f == nil || f.Changed {
			continue
		}
		for _, value := range settings[key].values {
			if err := cmd.Flags().Set(key, value); err != nil {
				problems = append(problems, node.Problem{Key: settings[key].from, What: "cannot be used", Value: value, Do: "see " + cmd.CommandPath() + " --help"})
			}
		}
	}
	if len(problems) > 0 {
		return problems
	}
	return nil
}

// lbSetting is a setting, and where it is from.
type lbSetting struct {
	from   string
	values []string
}

// lbKeys are the flags of all commands below lb.
func lbKeys(parent *cobra.Command) (known []string) {
	for _, c := range parent.Commands() {
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if !slices.Contains(lbOutside, f.Name) && !slices.Contains(known, f.Name) {
				known = append(known, f.Name)
			}
		})
	}
	return known
}

func lbSuggestion(key string, known []string) string {
	if s := suggestion(key, known); strings.HasPrefix(s, "did you mean") {
		return s
	}
	return "remove it; " + lbSample + " lists every key"
}

func readLBFile(flags *pflag.FlagSet, known []string) (map[string]lbSetting, node.Problems, error) {
	settings := map[string]lbSetting{}
	file, _ := flags.GetString("config") // it exists
	if file == "" {
		if !exists(systemLBConfig) {
			return settings, nil, nil
		}
		file = systemLBConfig
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, node.Problems{{Key: "file", Value: file, What: "cannot read the file: " + pathCause(err), Do: "name a readable YAML file, see " + lbSample}}
	}
	var document map[string]any
	if err := yaml.Unmarshal(text, &document); err != nil {
		what := strings.TrimPrefix(strings.Join(strings.Fields(err.Error()), " "), "yaml: ")
		return nil, nil, node.Problems{{Key: "file", Value: file, What: "not YAML of keys and values: " + what, Do: "correct the file, see " + lbSample}}
	}
	var problems node.Problems
	for _, key := range slices.Sorted(maps.Keys(document)) {
		if !slices.Contains(known, key) {
			problems = append(problems, node.Problem{Key: key, What: "unknown key", Value: shortValue(document[key]), Do: lbSuggestion(key, known)})
			continue
		}
		values, ok := lbValues(document[key])
		if !ok {
			problems = append(problems, node.Problem{Key: key, What: "not a value or a list of values", Value: shortValue(document[key]), Do: "see " + lbSample + " for its form"})
			continue
		}
		settings[key] = lbSetting{key, values}
	}
	return settings, problems, nil
}

// lbValues are the values under a key; none for a key without one, which leaves
// its default.
func lbValues(value any) (values []string, ok bool) {
	switch v := value.(type) {
	case nil:
		return nil, true
	case []any:
		for _, inner := range v {
			switch inner.(type) {
			case []any, map[string]any, nil:
				return nil, false
			}
			values = append(values, fmt.Sprint(inner))
		}
		return values, true
	case map[string]any:
		return nil, false
	default:
		return []string{fmt.Sprint(v)}, true
	}
}

func shortValue(value any) string {
	return truncate(strings.Join(strings.Fields(fmt.Sprint(value)), " "), 60)
}
