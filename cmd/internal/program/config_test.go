package program

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/metaflowys/metaflow-server/pkg/config"
)

// Every variable that the documents name is in a section, and every section has one.
func TestSectionsCoverTheVariables(t *testing.T) {
	used := map[string]bool{}
	sections := slices.Concat(slices.Collect(maps.Values(sections))...)
	page, err := os.ReadFile("../../../docs/configure.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("<br>`(METAFLOW_[A-Z0-9_]+)`").FindAllStringSubmatch(string(page), -1) {
		at := slices.IndexFunc(sections, func(s string) bool { return m[1] == s || strings.HasSuffix(s, "_") && strings.HasPrefix(m[1], s) })
		if at < 0 {
			t.Errorf("%s is in none of the sections", m[1])
			continue
		}
		used[sections[at]] = true
	}
	for _, s := range sections {
		if !used[s] {
			t.Errorf("no variable is in the section %s", s)
		}
	}
}

// demo is a configuration with a section of an agent and a key that all programs have.
type demo struct {
	Group  string `mapstructure:"group" doc:"of agents"`
	Server struct {
		Token string `mapstructure:"token" doc:"of the agent"`
	} `mapstructure:"server" doc:"the server"`
}

func (*demo) Validate() error { return nil }

// Programs that share an environment ignore each other's variables, and still report
// their own misspelt ones.
func TestVariablesOfOtherPrograms(t *testing.T) {
	for name, want := range map[string]bool{
		"METAFLOW_KAFKA_BROKERS":        true,
		"METAFLOW_KAFKA_BROKER":         true, // the server reports it
		"METAFLOW_VERIFY_RATE":          true,
		"METAFLOW_CTL_TOKEN":            true,
		"METAFLOW_GROUP":                true,
		"METAFLOW_SERVER_TOKN":          false,
		"METAFLOW_GROUPS":               false,
		"METAFLOW_SHUTDOWN_GRACES":      false,
		"METAFLOW_CLICKHOSE_USERNAME":   false,
		"METAFLOW_CLICKHOUSE_ADDRESSES": true,
	} {
		t.Setenv(name, "x")
		cmd := Configured[*demo]{New: func() *demo { return new(demo) }}.Command(nil)
		var out bytes.Buffer
		cmd.SetArgs([]string{"check"})
		cmd.SetOut(&out)
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		err := cmd.Execute()
		var wrong *config.Error
		if (err == nil) != want || err != nil && (!errors.As(err, &wrong) || !strings.Contains(err.Error(), name)) {
			t.Errorf("%s: %v", name, err)
		}
		t.Setenv(name, "")
	}
}

// `config check FILE` and `config print FILE` mean the same as --config FILE.
func TestFileAsArgument(t *testing.T) {
	dir := t.TempDir()
	right, wrong := filepath.Join(dir, "right.yaml"), filepath.Join(dir, "wrong.yaml")
	for name, text := range map[string]string{right: "group: shop\n", wrong: "group: shop\ngroups: x\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"check", right}, ExitOK, "the configuration is valid"},
		{[]string{"check", right, "--config", right}, ExitOK, "the configuration is valid"},
		{[]string{"check", wrong}, ExitUsage, "groups: unknown key, did you mean group? (" + wrong + ":2)"},
		{[]string{"print", right}, ExitOK, "group: shop"},
		{[]string{"check", right, "--config", wrong}, ExitUsage, "two configuration files"},
		{[]string{"check", right, wrong}, ExitUsage, "unexpected argument"},
		{[]string{"check", filepath.Join(dir, "none.yaml")}, ExitUsage, "no such file"},
	} {
		var out bytes.Buffer
		root := Root("p", "", Configured[*demo]{New: func() *demo { return new(demo) }}.Command(nil))
		if status := Run(t.Context(), root, append([]string{"config"}, tc.args...), &out, &out); status != tc.status || !strings.Contains(out.String(), tc.want) {
			t.Errorf("%v: status %d, %q; want %d, %q", tc.args, status, out.String(), tc.status, tc.want)
		}
	}
}

// A file that is another program's says so. One with a key of another program does not.
func TestOwnerOfFile(t *testing.T) {
	own := config.Keys(new(demo), EnvPrefix)
	for top, want := range map[string]string{
		"kafka clickhouse log":   "metaflow-server",
		"server group spool":     "metaflow-agent",
		"clickhouse verify http": "metaflow-ctl verify",
		"server group kafka":     "",
		"server groups":          "",
		"nobodys":                "",
		"flow":                   "",
	} {
		if got := ownerOf(strings.Fields(top), own); got != want {
			t.Errorf("%s: %q, want %q", top, got, want)
		}
	}
}

// typed has a key of each kind that a flag may set.
type typed struct {
	Listen string        `mapstructure:"listen" doc:"host:port to listen on"`
	Peers  []string      `mapstructure:"peers" doc:"host:port of each peer"`
	Name   string        `mapstructure:"name" doc:"its name"`
	Rate   float64       `mapstructure:"rate" doc:"spans per second"`
	Count  int           `mapstructure:"count" doc:"spans"`
	Size   int64         `mapstructure:"size" unit:"bytes" doc:"bytes"`
	Wait   time.Duration `mapstructure:"wait" doc:"how long to wait"`
	Dry    bool          `mapstructure:"dry" doc:"change nothing"`
}

func (*typed) Validate() error { return nil }

// --help shows the types of keys, and flags set keys of every type.
func TestTypesOfFlags(t *testing.T) {
	keys := map[string]string{}
	for _, k := range config.Keys(new(typed), EnvPrefix) {
		keys[k.Name] = k.Name
	}
	cmd := &cobra.Command{Use: "p", RunE: func(*cobra.Command, []string) error { return nil }}
	flags := Configured[*typed]{New: func() *typed { return &typed{Wait: time.Minute, Count: 7, Name: "it"} }}.AddFlags(cmd, keys)
	help := cmd.UsageString()
	for _, want := range []string{
		"--listen host:port ", "--peers host:port ", "--name string ", "--rate number ", "--count number ", "--size size ", "--wait duration ", "--dry true|false ",
		" (default 1m)\n", " (default 7)\n", ` (default "it")` + "\n",
	} {
		if !strings.Contains(help, want) {
			t.Errorf("lacks %q:\n%s", want, help)
		}
	}
	cmd.SetArgs(strings.Fields("--listen :1 --peers a:1,b:1 --peers c:1 --name n --rate 0.5 --count 3 --size 2KiB --wait 1d --dry true"))
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	got, err := flags.Load()
	want := &typed{Listen: ":1", Peers: []string{"a:1", "b:1", "c:1"}, Name: "n", Rate: 0.5, Count: 3, Size: 2048, Wait: 24 * time.Hour, Dry: true}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
}
