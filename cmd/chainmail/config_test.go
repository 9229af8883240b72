package main

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"chainmail/node"
)

func TestConfigCheckRefusesInOneLineEach(t *testing.T) {
	files, err := filepath.Glob("testdata/config/bad-*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no bad configurations: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			code, stdout, stderr := runCommand(t, "config", "check", "--config", file)
			if code != exitUsage || stdout != "" {
				t.Errorf("exit code %d and output %q, want %d and none", code, stdout, exitUsage)
			}
			for line := range strings.Lines(stderr) {
				if !strings.HasPrefix(line, "chainmail: config: ") {
					t.Errorf("a line that does not say where it is from: %q", line)
				}
			}
			golden(t, strings.TrimSuffix(file, ".yaml")+".err", stderr)
		})
	}
}

func TestConfigCheckPrintsTheEffectiveConfiguration(t *testing.T) {
	t.Setenv("CHAINMAIL_NAME", "mail-archive-1")
	t.Setenv("CHAINMAIL_DATA_DIR", filepath.Join(t.TempDir(), "new"))
	t.Setenv("CHAINMAIL_LIMITS_MAX_MESSAGE_SIZE", "50MiB")
	t.Setenv("CHAINMAIL_SMTP", "127.0.0.1:2525")
	code, stdout, stderr := runCommand(t, "config", "check", "--config", "testdata/config/good.yaml")
	if code != exitOK || stderr != "" {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	stdout = strings.Replace(stdout, os.Getenv("CHAINMAIL_DATA_DIR"), "DIR", 1)
	golden(t, "testdata/config/good.effective", stdout)
}

func TestPrintedConfigurationReadsBack(t *testing.T) {
	t.Setenv("CHAINMAIL_DATA_DIR", t.TempDir())
	_, first, _ := runCommand(t, "config", "check", "--config", "testdata/config/good.yaml")
	file := filepath.Join(t.TempDir(), "effective.yaml")
	if err := os.WriteFile(file, []byte(first), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, second, stderr := runCommand(t, "config", "check", "--config", file); second != first {
		t.Errorf("exit code %d, %s\nread back as:\n%s\nwant:\n%s", code, stderr, second, first)
	}
}

const sample = "../../packaging/chainmail.yaml"

func TestSampleHoldsEveryKeyWithItsDefault(t *testing.T) {
	text, err := os.ReadFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	inSample := map[string]string{}
	flattenYAML(t, "", document.Content[0], inSample, true)

	defaults := node.Default().Complete()
	defaults.Name = ""
	effective, err := configYAML(defaults)
	if err != nil {
		t.Fatal(err)
	}
	var want yaml.Node
	if err := yaml.Unmarshal([]byte(effective), &want); err != nil {
		t.Fatal(err)
	}
	inCode := map[string]string{}
	flattenYAML(t, "", want.Content[0], inCode, false)

	if !reflect.DeepEqual(inSample, inCode) {
		t.Errorf("%s and the defaults differ\nsample: %v\ncode:   %v", sample, inSample, inCode)
	}
	inExample := exampleRoute(t, string(text))
	for _, key := range configKeys() {
		place := strings.ReplaceAll(key, "[]", "[0]")
		_, ok := inSample[place]
		if _, example := inExample[place]; !ok && !example {
			t.Errorf("%s lacks the key %s", sample, key)
		}
	}
}

// exampleRoute reads the route that the sample holds as a comment: without
// being told, a node has none.
func exampleRoute(t *testing.T, text string) map[string]string {
	t.Helper()
	_, rest, found := strings.Cut(text, "\nroutes: []\n")
	if !found {
		t.Fatalf("%s: routes is not the empty list", sample)
	}
	block := "name: x\nroutes:\n"
	for line := range strings.Lines(rest) {
		line, commented := strings.CutPrefix(line, "#")
		if !commented {
			break
		}
		block += line
	}
	file := filepath.Join(t.TempDir(), "example.yaml")
	if err := os.WriteFile(file, []byte(block), 0o600); err != nil {
		t.Fatal(err)
	}
	config, problems, err := loadConfig(file, newNodeCommand().Flags())
	if err != nil || problems != nil {
		t.Fatal(err, problems)
	}
	bare := node.Config{Routes: []node.Route{{Name: config.Routes[0].Name, Target: config.Routes[0].Target}}}
	if want := bare.Complete().Routes[0]; !reflect.DeepEqual(config.Routes[0], want) {
		t.Errorf("%s: the example route is not the default one\n got %+v\nwant %+v", sample, config.Routes[0], want)
	}
	var document yaml.Node
	if err := yaml.Unmarshal([]byte(block), &document); err != nil {
		t.Fatal(err)
	}
	keys := map[string]string{}
	flattenYAML(t, "", document.Content[0], keys, true)
	return keys
}

// flattenYAML collects each key and its value, and wants a comment above each.
func flattenYAML(t *testing.T, prefix string, n *yaml.Node, into map[string]string, commented bool) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name := prefix + key.Value
		if commented && key.HeadComment == "" && !slices.Contains([]string{"name", "connectors[0].name", "routes", "routes[0].name"}, name) {
			t.Errorf("%s: no comment above %s", sample, name)
		}
		into[name] = ""
		switch {
		case value.Kind == yaml.MappingNode:
			flattenYAML(t, name+".", value, into, commented)
		case value.Kind == yaml.SequenceNode && len(value.Content) == 1 && value.Content[0].Kind == yaml.MappingNode:
			into[name+"[0]"] = ""
			flattenYAML(t, name+"[0].", value.Content[0], into, commented)
		case value.Kind == yaml.SequenceNode:
			if len(value.Content) > 0 {
				t.Errorf("%s: the default of %s is not the empty list", sample, name)
			}
		default:
			into[name] = value.Value
		}
	}
}

func TestFlagsCountBeforeEnvironmentBeforeFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte("smtp: ':1001'\nhttp: ':1002'\nname: from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CHAINMAIL_HTTP", ":2002")
	t.Setenv("CHAINMAIL_NAME", "from-env")
	cmd := newNodeCommand()
	if err := cmd.ParseFlags([]string{"--name", "from-flag", "--log-level", "debug"}); err != nil {
		t.Fatal(err)
	}
	got, problems, err := loadConfig(file, cmd.Flags())
	if err != nil || problems != nil {
		t.Fatal(err, problems)
	}
	if got.Name != "from-flag" || got.HTTP != ":2002" || got.SMTP != ":1001" || got.Log.Level != node.LogDebug {
		t.Errorf("got name %s, http %s, smtp %s, log level %s", got.Name, got.HTTP, got.SMTP, got.Log.Level)
	}
}

func TestMisspeltVariableIsRefused(t *testing.T) {
	t.Setenv("CHAINMAIL_DATADIR", "/mail")
	t.Setenv("CHAINMAIL_LB_SMTP", ":25") // of chainmail lb
	t.Setenv("CHAINMAIL_TOKEN", "secret")
	t.Setenv("CHAINMAIL_LIMITS_MAX_MESAGE_SIZE", "1MiB")
	code, _, stderr := runCommand(t, "config", "check")
	want := `chainmail: config: CHAINMAIL_DATADIR: unknown environment variable (/mail): did you mean CHAINMAIL_DATA_DIR?
chainmail: config: CHAINMAIL_LIMITS_MAX_MESAGE_SIZE: unknown environment variable (1MiB): did you mean CHAINMAIL_LIMITS_MAX_MESSAGE_SIZE?
`
	if code != exitUsage || stderr != want {
		t.Errorf("exit code %d\n%s", code, stderr)
	}
}

func TestFlagsThatAreNotGivenChangeNothing(t *testing.T) {
	got, problems, err := loadConfig("", newNodeCommand().Flags())
	if err != nil || problems != nil {
		t.Fatal(err, problems)
	}
	if want := node.Default().Complete(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

// TestWhichFileIsRead: the first of those that the rule names and that exist.
func TestWhichFileIsRead(t *testing.T) {
	folder := t.TempDir()
	system, standard, named, bare := filepath.Join(folder, "etc.yaml"), filepath.Join(folder, "default"), filepath.Join(folder, "named"), filepath.Join(folder, "bare")
	oldSystem, oldDirectory := systemConfig, defaultDirectory
	t.Cleanup(func() { systemConfig, defaultDirectory = oldSystem, oldDirectory })
	systemConfig, defaultDirectory = system, standard
	for file, text := range map[string]string{
		filepath.Join(standard, ownConfig): "name: default\ndata_dir: " + standard + "\n",
		filepath.Join(named, ownConfig):    "name: named\n",
	} {
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	j := recordJoins(t)
	expect := func(name, dir string, args ...string) {
		t.Helper()
		args = append([]string{"node"}, args...)
		if code, _, stderr := runCommand(t, args...); code != exitOK {
			t.Fatalf("%v: exit code %d: %s", args, code, stderr)
		}
		if c := j.ran[len(j.ran)-1]; c.Name != name || c.DataDir != dir {
			t.Errorf("%v: node %s in %s, want %s in %s", args, c.Name, c.DataDir, name, dir)
		}
	}
	host := node.Default().Complete().Name
	expect("default", standard)
	expect("named", named, "--data-dir", named)
	expect(host, bare, "--data-dir", bare) // the default directory's file is about another node
	if dir, err := new(target).directory(); err != nil || dir != standard {
		t.Errorf("the commands ask the node in %s, %v", dir, err)
	}

	if err := os.WriteFile(system, []byte("name: system\ndata_dir: "+bare+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect("system", bare)
	expect("named", named, "--data-dir", named)
	expect("system", folder, "--data-dir", folder)
	expect("default", standard, "--data-dir", standard)
	t.Setenv("CHAINMAIL_DATA_DIR", named)
	expect("named", named)
	expect("default", named, "--config", filepath.Join(standard, ownConfig))
}

// TestJoinAndStartWithoutFlags: what join-node writes by default is what node
// reads by default.
func TestJoinAndStartWithoutFlags(t *testing.T) {
	oldSystem, oldDirectory := systemConfig, defaultDirectory
	t.Cleanup(func() { systemConfig, defaultDirectory = oldSystem, oldDirectory })
	systemConfig, defaultDirectory = filepath.Join(t.TempDir(), "none.yaml"), filepath.Join(t.TempDir(), "default")
	file := filepath.Join(defaultDirectory, ownConfig)
	text, err := joinedConfig(node.Config{Name: "b", DataDir: defaultDirectory, SMTP: "127.0.0.1:2510"}.Complete())
	if err != nil {
		t.Fatal(err)
	}
	join := joining{}
	if got, err := join.configFile(newJoinNodeCommand().Flags()); err != nil || got != file {
		t.Errorf("join-node writes %s, %v", got, err)
	}
	if err := os.MkdirAll(defaultDirectory, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := join.configFile(newJoinNodeCommand().Flags()); err != nil || got != file {
		t.Errorf("join-node reads %s, %v", got, err)
	}
	j := recordJoins(t)
	if code, _, stderr := runCommand(t, "node"); code != exitOK || j.ran[0].Name != "b" || j.ran[0].SMTP != "127.0.0.1:2510" {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
