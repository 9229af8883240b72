package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/spf13/pflag"
	"github.com/spf13/viper"
	"go.yaml.in/yaml/v3"

	"chainmail/node"
)

// Where a node looks when it is not told; tests put something else here.
var (
	systemConfig     = "/etc/chainmail/chainmail.yaml"
	defaultDirectory = node.Default().DataDir
)

const (
	envPrefix = "CHAINMAIL"
	// keyDelimiter keeps dots usable in keys: viper would split them.
	keyDelimiter = "::"
)

// configFlags are the flags that set a key of the configuration.
var configFlags = map[string]string{
	"name":             "name",
	"role":             "role",
	"data-dir":         "data_dir",
	"smtp":             "smtp",
	"chain":            "chain",
	"gossip":           "gossip",
	"raft":             "raft",
	"http":             "http",
	"advertise-smtp":   "advertise" + keyDelimiter + "smtp",
	"advertise-chain":  "advertise" + keyDelimiter + "chain",
	"advertise-gossip": "advertise" + keyDelimiter + "gossip",
	"advertise-raft":   "advertise" + keyDelimiter + "raft",
	"advertise-http":   "advertise" + keyDelimiter + "http",
	"log-level":        "log" + keyDelimiter + "level",
}

// ownConfig is the configuration file that a data directory may hold itself;
// join-node writes it there.
const ownConfig = "chainmail.yaml"

// configFile is the file that a node with these flags reads; empty: none. The
// system's file counts when it sets something: the packages bring one that does
// not, for join-node to write. A data directory that was named and has a file of its own is no business of the
// system's file. The default directory's own file counts only where no
// directory is named: it is about a node of another directory else.
func configFile(named string, flags *pflag.FlagSet) string {
	if named != "" {
		return named
	}
	places := []string{systemConfig, filepath.Join(defaultDirectory, ownConfig)}
	if dir := namedDirectory(flags); dir != "" {
		places = []string{filepath.Join(dir, ownConfig), systemConfig}
	}
	i := slices.IndexFunc(places, func(file string) bool {
		if file == systemConfig {
			return counts(file)
		}
		return exists(file)
	})
	if i < 0 {
		return ""
	}
	return places[i]
}

// namedDirectory is the data directory of flags or environment; empty: neither
// names one.
func namedDirectory(flags *pflag.FlagSet) string {
	if f := flags.Lookup("data-dir"); f != nil && f.Changed {
		return f.Value.String()
	}
	return os.Getenv(envPrefix + "_DATA_DIR")
}

// loadConfig returns the effective configuration: flags before environment
// before file before defaults, and every key that cannot be understood. Whether
// the values make sense is for node.Config.Validate. The error is a
// node.Problems too and tells why the file cannot be read at all.
func loadConfig(file string, flags *pflag.FlagSet) (node.Config, node.Problems, error) {
	v := viper.NewWithOptions(viper.KeyDelimiter(keyDelimiter), viper.ExperimentalBindStruct())
	v.SetEnvPrefix(envPrefix)
	v.SetEnvKeyReplacer(strings.NewReplacer(keyDelimiter, "_"))
	v.AutomaticEnv()
	for name, key := range configFlags {
		// viper would let the empty default of a flag hide the node's own.
		if f := flags.Lookup(name); f != nil && f.Changed {
			if err := v.BindPFlag(key, f); err != nil {
				return node.Config{}, nil, err
			}
		}
	}
	var empty node.Problems
	if file = configFile(file, flags); file != "" {
		v.SetConfigFile(file)
		v.SetConfigType("yaml")
		if err := v.ReadInConfig(); err != nil {
			return node.Config{}, nil, node.Problems{fileProblem(file, err)}
		}
		var err error
		if empty, err = unknownEmptyKeys(file); err != nil {
			return node.Config{}, nil, node.Problems{fileProblem(file, err)}
		}
	}
	config, problems := decodeConfig(v)
	for _, p := range empty {
		if !slices.ContainsFunc(problems, func(known node.Problem) bool { return known.Key == p.Key }) {
			problems = append(problems, p)
		}
	}
	return config.Complete(), append(problems, unknownVariables(os.Environ())...), nil
}

// unknownEmptyKeys finds unknown keys without a value ("colour:", "colour: {}"),
// which viper drops before anybody sees them.
func unknownEmptyKeys(file string) (node.Problems, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var document map[string]any
	if err := yaml.Unmarshal(text, &document); err != nil {
		return nil, err
	}
	known := configKeys()
	var problems node.Problems
	check := func(key string) {
		plain := indexed.ReplaceAllString(key, "[]")
		if !slices.Contains(known, plain) && !slices.Contains(known, plain+"[]") {
			problems = append(problems, node.Problem{Key: key, What: "unknown key", Do: suggestion(key, known)})
		}
	}
	var walk func(key string, value any)
	walk = func(key string, value any) {
		switch v := value.(type) {
		case nil:
			check(key)
		case map[string]any:
			if len(v) == 0 && key != "" {
				check(key)
			}
			for name, inner := range v {
				walk(strings.TrimPrefix(key+"."+strings.ToLower(name), "."), inner) // in small letters, as viper has it
			}
		case []any:
			for i, inner := range v {
				walk(fmt.Sprintf("%s[%d]", key, i), inner)
			}
		}
	}
	walk("", document)
	problems = slices.DeleteFunc(problems, func(p node.Problem) bool { return strings.HasSuffix(p.Key, "]") }) // an empty element is decoded as one
	slices.SortFunc(problems, func(a, b node.Problem) int { return cmp.Compare(a.Key, b.Key) })
	return problems, nil
}

// unknownVariables finds variables that look like settings and are none:
// CHAINMAIL_DATADIR would leave the mail where nobody expects it.
func unknownVariables(environ []string) node.Problems {
	var known []string
	for _, key := range configKeys() {
		if !strings.Contains(key, "[]") {
			known = append(known, envPrefix+"_"+strings.ToUpper(strings.ReplaceAll(key, ".", "_")))
		}
	}
	var problems node.Problems
	for _, setting := range environ {
		name, value, _ := strings.Cut(setting, "=")
		others := strings.HasPrefix(name, lbEnvPrefix) || name == lbTokenVariable // of the balancer
		if strings.HasPrefix(name, envPrefix+"_") && !others && !slices.Contains(known, name) {
			problems = append(problems, node.Problem{Key: name, What: "unknown environment variable", Value: value, Do: suggestion(name, known)})
		}
	}
	return problems
}

// decodeConfig is viper's UnmarshalExact with the unknown keys as data instead
// of in the text of an error, so that each can be named and corrected.
func decodeConfig(v *viper.Viper) (node.Config, node.Problems) {
	config := node.Default()
	var found *mapstructure.Metadata
	err := v.Unmarshal(&config, func(d *mapstructure.DecoderConfig) {
		found = &mapstructure.Metadata{}
		d.Metadata = found
		d.TagName = "yaml"
		d.DecodeHook = mapstructure.ComposeDecodeHookFunc(numberToText, mapstructure.TextUnmarshallerHookFunc())
	})
	problems := decodeProblems(v, err)
	known := configKeys()
	for _, key := range slices.Sorted(slices.Values(found.Unused)) {
		problems = append(problems, node.Problem{
			Key: key, What: "unknown key", Value: valueOf(v, key), Do: suggestion(key, known),
		})
	}
	return config, problems
}

// numberToText lets the sizes and durations judge bare numbers themselves:
// "idle_timeout: 30" must not become 30 nanoseconds.
func numberToText(from, to reflect.Type, value any) (any, error) {
	if to == reflect.TypeFor[node.Size]() || to == reflect.TypeFor[node.Duration]() {
		if from != to {
			return fmt.Sprint(value), nil
		}
	}
	return value, nil
}

// decodeProblems turns mapstructure's tree of errors into one problem a key.
func decodeProblems(v *viper.Viper, err error) node.Problems {
	var problems node.Problems
	switch e := err.(type) { //nolint:errorlint // it walks down the tree itself
	case nil:
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			problems = append(problems, decodeProblems(v, inner)...)
		}
	case *mapstructure.DecodeError:
		problems = append(problems, decodeProblem(v, e))
	default:
		if inner := errors.Unwrap(err); inner != nil {
			return decodeProblems(v, inner)
		}
		problems = append(problems, node.Problem{Key: "configuration", What: "cannot be read", Value: err.Error(), Do: "compare with packaging/chainmail.yaml"})
	}
	return problems
}

func decodeProblem(v *viper.Viper, e *mapstructure.DecodeError) node.Problem {
	p := node.Problem{Key: e.Name(), Value: valueOf(v, e.Name())}
	const form = "see packaging/chainmail.yaml for its form"
	if unconvertible, ok := errors.AsType[*mapstructure.UnconvertibleTypeError](e); ok {
		p.What, p.Do = "not "+kindName(unconvertible.Expected.Type()), form
		return p
	}
	if _, ok := errors.AsType[*mapstructure.ParseError](e); ok {
		p.What, p.Do = "not a number", "write digits only"
		return p
	}
	// The text types say all of it: "not a size (9 bottles): write …".
	if what, do, ok := strings.Cut(e.Unwrap().Error(), " ("); ok {
		if _, do, ok = strings.Cut(do, "): "); ok {
			p.What, p.Do = what, do
			return p
		}
	}
	if strings.HasPrefix(e.Unwrap().Error(), "expected a map") {
		p.What, p.Do = "not a group of keys", form
		return p
	}
	p.What, p.Do = "not understood: "+e.Unwrap().Error(), form
	return p
}

func kindName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Struct, reflect.Map:
		return "a group of keys"
	case reflect.Slice:
		return "a list"
	case reflect.Int, reflect.Int64, reflect.Float64:
		return "a number"
	default:
		return "a single value"
	}
}

// fileProblem explains why the file as a whole cannot be used.
func fileProblem(file string, err error) node.Problem {
	p := node.Problem{Key: "file", Value: file}
	if parse, ok := errors.AsType[viper.ConfigParseError](err); ok {
		text := strings.TrimPrefix(strings.Join(strings.Fields(parse.Unwrap().Error()), " "), "yaml: ")
		p.What, p.Do = "not YAML: "+text, "correct the file; YAML is indented with spaces"
		return p
	}
	p.What, p.Do = "cannot read the file: "+pathCause(err), "name a readable YAML file, see packaging/chainmail.yaml"
	return p
}

func pathCause(err error) string {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return pathErr.Err.Error()
	}
	return err.Error()
}

var indexed = regexp.MustCompile(`\[(\d+)\]`)

// valueOf finds what was written under a key such as "connectors[1].tls.mode",
// in one line.
func valueOf(v *viper.Viper, key string) string {
	path := strings.Split(indexed.ReplaceAllString(key, ".$1"), ".")
	var value any = v.AllSettings()
	for _, name := range path {
		switch holder := value.(type) {
		case map[string]any:
			value = holder[name]
		case []any:
			i := slices.IndexFunc(indices(len(holder)), func(s string) bool { return s == name })
			if i < 0 {
				return ""
			}
			value = holder[i]
		}
	}
	text := strings.Join(strings.Fields(fmt.Sprint(value)), " ")
	return truncate(text, 60)
}

func indices(n int) []string {
	s := make([]string, n)
	for i := range s {
		s[i] = fmt.Sprint(i)
	}
	return s
}

// configYAML prints a configuration in the form of the file.
func configYAML(c node.Config) (string, error) {
	var b strings.Builder
	err := writeYAML(&b, c)
	return b.String(), err
}

func writeYAML(w io.Writer, v any) error {
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	return errors.Join(e.Encode(v), e.Close())
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// counts reports whether a file exists and sets something, or cannot be
// understood: then it must be complained of.
func counts(file string) bool {
	text, err := os.ReadFile(file)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	var document any
	return yaml.Unmarshal(text, &document) != nil || document != nil
}
