package config

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"

	"github.com/metaflowys/metaflow-server/pkg/values"
)

// Options are the sources of values besides the defaults.
type Options struct {
	// File is a YAML file. Empty means none.
	File string
	// Hint, if set, gets the top-level keys of a file that has unknown ones
	// among them. What it returns, unless that is empty, becomes the first
	// problem of the file.
	Hint func(topLevel []string) string
	// EnvPrefix is the prefix of environment variables: METAFLOW and
	// kafka.brokers make METAFLOW_KAFKA_BROKERS. Empty means no variables. An
	// empty variable counts as not set. A variable with the prefix that matches
	// no key is a problem.
	EnvPrefix string
	// OtherVariables have the prefix but belong to other programs. A name that
	// ends in _ matches every variable that begins with it.
	OtherVariables []string
	// Flags are parsed flags. A flag that was given and is in FlagKeys sets the
	// key that FlagKeys maps it to.
	Flags    *pflag.FlagSet
	FlagKeys map[string]string
}

// Load fills dst, a pointer to a struct that holds the defaults, from the
// sources in opts, and then calls dst's Validate method if it has one. It
// returns nil or an [*Error] with every problem found; after an error dst must
// not be used.
func Load(dst any, opts Options) error {
	l := newLoader(dst)
	if opts.File != "" {
		l.file(readFile(opts.File, dst, opts.Hint))
	}
	if opts.EnvPrefix != "" {
		l.environment(opts)
	}
	if opts.Flags != nil {
		l.flags(opts)
	}
	l.apply()
	if v, ok := dst.(interface{ Validate() error }); ok {
		l.validated(v.Validate())
	}
	if len(l.problems) > 0 {
		return &Error{Problems: l.problems}
	}
	return nil
}

// loader lets viper decide which of a key's values counts: flag, variable, file
// or default. It gives viper texts instead of YAML's numbers, because a text
// preserves what the operator wrote (0123, 1.10), and parses the text that
// viper returns.
type loader struct {
	fields   []field
	layers   *viper.Viper
	sources  map[string]string // where a key was set; the last layer counts
	problems []Problem
}

func newLoader(dst any) *loader {
	l := &loader{fields: fieldsOf(dst), layers: viper.New(), sources: map[string]string{}}
	for _, f := range l.fields {
		if !f.isList() || !f.value.IsNil() {
			l.layers.SetDefault(f.key, f.texts())
		}
	}
	return l
}

func (l *loader) file(f *file) {
	l.problems = append(l.problems, f.problems...)
	set := map[string]any{}
	for key, v := range f.values {
		set[key] = v.texts
		l.sources[key] = v.source
	}
	must(l.layers.MergeConfigMap(set))
}

func (l *loader) environment(opts Options) {
	var known []string
	for _, f := range l.fields {
		name := envName(opts.EnvPrefix, f.key)
		known = append(known, name)
		must(l.layers.BindEnv(f.key, name))
		if os.Getenv(name) != "" {
			l.sources[f.key] = name
		}
	}
	l.problems = append(l.problems, UnknownVariables(os.Environ(), opts.EnvPrefix+"_", known, opts.OtherVariables)...)
}

func (l *loader) flags(opts Options) {
	keys := map[string]bool{}
	for _, f := range l.fields {
		keys[f.key] = true
	}
	opts.Flags.VisitAll(func(flag *pflag.Flag) {
		key, ok := opts.FlagKeys[flag.Name]
		switch {
		case !ok:
			return
		case !keys[key]:
			panic("config: flag --" + flag.Name + " sets the unknown key " + key)
		}
		must(l.layers.BindPFlag(key, flag))
		if flag.Changed {
			l.sources[key] = "--" + flag.Name
		}
	})
}

// must panics on errors of viper that only wrong arguments cause.
func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("config: %v", err))
	}
}

// apply parses the texts that viper returns into the fields.
func (l *loader) apply() {
	for _, f := range l.fields {
		value := l.layers.Get(f.key)
		if value == nil {
			continue // a list that is not set
		}
		for _, err := range leaves(f.set(f.split(value))) {
			l.problems = append(l.problems, Problem{Key: f.key, Text: err.Error(), Source: l.sources[f.key]})
		}
	}
}

// split returns the texts of a value. Variables and flags hold a list in one
// text.
func (f field) split(value any) []string {
	switch v := value.(type) {
	case []string:
		return v
	case string:
		if f.isList() {
			return values.List(v)
		}
		return []string{v}
	default:
		panic(fmt.Sprintf("config: %s has a value of the unexpected type %T", f.key, value))
	}
}

// validated records the problems that Validate found and adds where the value
// was set. A problem begins with its key.
func (l *loader) validated(err error) {
	for _, e := range leaves(err) {
		p := Problem{Text: e.Error()}
		if key, text, ok := strings.Cut(p.Text, ": "); ok && !strings.Contains(key, " ") {
			p.Key, p.Text = key, text
			name, _, _ := strings.Cut(key, "[")
			p.Source = l.sources[name]
		}
		l.problems = append(l.problems, p)
	}
}
