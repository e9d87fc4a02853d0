package program

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/metaflowys/metaflow-server/pkg/config"
)

// EnvPrefix is the prefix of environment variables; the rest of the name is the
// key.
const EnvPrefix = "METAFLOW"

// Validator is a configuration: a pointer to a struct as pkg/config describes
// it.
type Validator interface{ Validate() error }

// Configured describes the configuration of a program.
type Configured[C Validator] struct {
	// New returns the defaults.
	New func() C
	// Variables are those with EnvPrefix that the program reads but that set no
	// key.
	Variables []string
}

// otherVariables have EnvPrefix but set no key of a configuration:
// those of metaflow-ctl, which the server's containers have too, those of tests, and
// the library of standalone, beside which an agent may run.
var otherVariables = []string{"METAFLOW_CTL_", "METAFLOW_TEST_", "METAFLOW_CHDB_"}

// sections are the beginnings of the variables that set keys, by program: sections of
// keys, and keys without a section. Programs may share an environment, so each one ignores
// the sections that only others have. A misspelt variable is reported by the program whose
// section it is in.
var sections = map[string][]string{
	"metaflow-server": {
		"METAFLOW_ROLES", "METAFLOW_MIGRATE_AT_START", "METAFLOW_SHUTDOWN_GRACE", "METAFLOW_GRPC_", "METAFLOW_HTTP_", "METAFLOW_KAFKA_",
		"METAFLOW_CLICKHOUSE_", "METAFLOW_RETENTION_", "METAFLOW_GATEWAY_", "METAFLOW_WRITER_", "METAFLOW_FLOW_WRITER_", "METAFLOW_CONTROL_",
		"METAFLOW_RESOURCES_", "METAFLOW_EDGE_METRICS_", "METAFLOW_QUERY_", "METAFLOW_LOG_",
	},
	"metaflow-agent": {
		"METAFLOW_ID", "METAFLOW_NAME", "METAFLOW_GROUP", "METAFLOW_CLUSTER", "METAFLOW_SERVER_", "METAFLOW_OTLP_", "METAFLOW_SPOOL_",
		"METAFLOW_KUBERNETES_", "METAFLOW_HTTP_", "METAFLOW_LOG_",
	},
	"metaflow-ctl verify": {"METAFLOW_VERIFY_", "METAFLOW_CLICKHOUSE_", "METAFLOW_HTTP_", "METAFLOW_LOG_"},
}

// groupSections are the sections of an agent group's configuration.
var groupSections = []string{"inputs", "outputs"}

// foreign returns the sections that have none of the keys.
func foreign(keys []config.Key) []string {
	return slices.DeleteFunc(slices.Concat(slices.Collect(maps.Values(sections))...), func(section string) bool {
		return slices.ContainsFunc(keys, func(k config.Key) bool { return strings.HasPrefix(k.Env, section) })
	})
}

// ownerOf returns the program that has more of the keys, which are at the top level of a file,
// than known, a program's own. If there is none, it returns "".
func ownerOf(top []string, known []config.Key) (owner string) {
	most := count(top, func(key string) bool {
		return slices.ContainsFunc(known, func(k config.Key) bool { return k.Name == key || strings.HasPrefix(k.Name, key+".") })
	})
	for _, name := range slices.Sorted(maps.Keys(sections)) {
		has := count(top, func(key string) bool {
			variable := EnvPrefix + "_" + strings.ToUpper(key)
			return slices.Contains(sections[name], variable) || slices.Contains(sections[name], variable+"_")
		})
		if has > most {
			owner, most = name, has
		}
	}
	return owner
}

func count(texts []string, which func(string) bool) (n int) {
	for _, text := range texts {
		if which(text) {
			n++
		}
	}
	return n
}

// Flags are the flags of a command that reads the configuration.
type Flags[C Validator] struct {
	from Configured[C]
	cmd  *cobra.Command
	file string
	keys map[string]string // flag name -> key
}

// AddFlags adds --config and a flag for each of the keys to cmd.
func (c Configured[C]) AddFlags(cmd *cobra.Command, keys map[string]string) *Flags[C] {
	f := &Flags[C]{from: c, cmd: cmd, keys: keys}
	cmd.Flags().StringVar(&f.file, "config", "", "YAML `FILE` with the configuration; the command 'config print' shows every key")
	byName := map[string]config.Key{}
	for _, k := range config.Keys(c.New(), EnvPrefix) {
		byName[k.Name] = k
	}
	for flag, key := range keys {
		k := byName[key]
		scalar, isList := strings.CutPrefix(k.Type, "list of ")
		cmd.Flags().Var(&keyFlag{text: k.Default, kind: kinds[scalar], isList: isList}, flag, usage(k.Doc))
	}
	return f
}

// kinds are the types of keys as --help shows them. They are none of those whose values viper
// would parse.
var kinds = map[string]string{"text": "string", "whole number": "number", "number": "number", "size": "size", "duration": "duration", "true or false": "true|false"}

// usage marks what the value of a flag is, if its meaning begins with that.
func usage(doc string) string {
	for _, what := range []string{"host:port", "URL", "file", "directory"} {
		if rest, ok := strings.CutPrefix(doc, what+" "); ok {
			return "`" + what + "` " + rest
		}
	}
	return doc
}

// keyFlag is a flag that sets a key, whose value pkg/config parses. Commas separate the values
// of a list, repetitions of the flag, or both.
type keyFlag struct {
	text, kind  string
	isList, set bool
}

func (f *keyFlag) String() string { return f.text }

// Type is what --help prints.
func (f *keyFlag) Type() string { return f.kind }

// Set implements pflag.Value.
func (f *keyFlag) Set(text string) error {
	if f.isList && f.set {
		text = f.text + "," + text
	}
	f.text, f.set = text, true
	return nil
}

// Load returns the effective configuration: defaults, overridden by the file,
// then the environment, then the flags.
func (f *Flags[C]) Load() (C, error) {
	cfg := f.from.New()
	return cfg, f.LoadOver(cfg)
}

// LoadOver loads the configuration over the defaults in cfg.
func (f *Flags[C]) LoadOver(cfg C) error {
	keys := config.Keys(cfg, EnvPrefix)
	return config.Load(cfg, config.Options{
		File: f.file, Hint: func(top []string) string {
			if slices.ContainsFunc(groupSections, func(s string) bool { return slices.Contains(top, s) }) {
				return fmt.Sprintf("this looks like the configuration of an agent group: 'metaflow-ctl agent-group-config update GROUP -f %s --dry-run' checks it", f.file)
			}
			owner := ownerOf(top, keys)
			if owner == "" {
				return ""
			}
			return fmt.Sprintf("this looks like the configuration of %[1]s: check it by '%[1]s config check %[2]s'", owner, f.file)
		},
		EnvPrefix: EnvPrefix, OtherVariables: slices.Concat(otherVariables, foreign(keys), f.from.Variables),
		Flags: f.cmd.Flags(), FlagKeys: f.keys,
	})
}

// fileFrom takes the file from the arguments of a command [FILE], which is as good as
// --config.
func (f *Flags[C]) fileFrom(args []string) error {
	if len(args) == 0 {
		return nil
	}
	if f.file != "" && f.file != args[0] {
		return Usage("two configuration files: %s and --config %s", args[0], f.file)
	}
	f.file = args[0]
	return nil
}

// Command returns the command config with check and print. keys are flags that
// both accept besides --config.
func (c Configured[C]) Command(keys map[string]string) *cobra.Command {
	check := &cobra.Command{
		Use: "check [FILE]", Short: "Report all problems of the configuration; status 2 if there are any", Args: Args(cobra.MaximumNArgs(1)),
		Long: "check reports all problems of the configuration in FILE or --config, the environment and the flags.",
	}
	checked := c.AddFlags(check, keys)
	check.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checked.fileFrom(args); err != nil {
			return err
		}
		if _, err := checked.Load(); err != nil {
			return err
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "the configuration is valid")
		return err
	}
	show := &cobra.Command{
		Use: "print [FILE]", Short: "Print every key with its value, default and meaning, as a valid configuration file", Args: Args(cobra.MaximumNArgs(1)),
		Long: "print prints the configuration of FILE or --config, the environment and the flags, and the default of every key that they do not set.",
	}
	shown := c.AddFlags(show, keys)
	show.RunE = func(cmd *cobra.Command, args []string) error {
		if err := shown.fileFrom(args); err != nil {
			return err
		}
		cfg, err := shown.Load()
		if err != nil {
			return err
		}
		return config.Print(cmd.OutOrStdout(), cfg, c.New(), EnvPrefix)
	}
	return Group("config", "Check or print the configuration", check, show)
}
