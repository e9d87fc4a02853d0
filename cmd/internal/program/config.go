package program

import (
	"fmt"
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

// otherVariables have EnvPrefix but configure neither the server nor the agent:
// those of metaflow-ctl, which the server's containers have too, those of tests, and
// the library of standalone, beside which an agent may run.
var otherVariables = []string{"METAFLOW_CTL_", "METAFLOW_TEST_", "METAFLOW_CHDB_"}

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
		if strings.HasPrefix(k.Type, "list of ") {
			cmd.Flags().Var(&list{text: k.Default}, flag, k.Doc)
			continue
		}
		cmd.Flags().String(flag, k.Default, k.Doc)
	}
	return f
}

// list is a flag of several values, which commas separate, repetitions of the flag, or both.
type list struct {
	text string
	set  bool
}

func (l *list) String() string { return l.text }

// Type is that of the other flags: its name is printed by --help.
func (*list) Type() string { return "string" }

// Set implements pflag.Value.
func (l *list) Set(text string) error {
	if l.set {
		text = l.text + "," + text
	}
	l.text, l.set = text, true
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
	return config.Load(cfg, config.Options{
		File: f.file, EnvPrefix: EnvPrefix, OtherVariables: append(slices.Clone(otherVariables), f.from.Variables...),
		Flags: f.cmd.Flags(), FlagKeys: f.keys,
	})
}

// Command returns the command config with check and print. keys are flags that
// both accept besides --config.
func (c Configured[C]) Command(keys map[string]string) *cobra.Command {
	check := &cobra.Command{
		Use: "check", Short: "Report all problems of the configuration; status 2 if there are any", Args: Args(cobra.NoArgs),
	}
	checked := c.AddFlags(check, keys)
	check.RunE = func(cmd *cobra.Command, _ []string) error {
		if _, err := checked.Load(); err != nil {
			return err
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "the configuration is valid")
		return err
	}
	show := &cobra.Command{
		Use: "print", Short: "Print every key with its value, default and meaning, as a valid configuration file", Args: Args(cobra.NoArgs),
	}
	shown := c.AddFlags(show, keys)
	show.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := shown.Load()
		if err != nil {
			return err
		}
		return config.Print(cmd.OutOrStdout(), cfg, c.New(), EnvPrefix)
	}
	return Group("config", "Check or print the configuration", check, show)
}
