package config

import (
	"os"
	"strings"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"
)

// Options say where values come from besides the defaults.
type Options struct {
	// File is a YAML file. Empty means none.
	File string
	// EnvPrefix and a key make a variable's name: METAFLOW and kafka.brokers make
	// METAFLOW_KAFKA_BROKERS. Empty means no variables.
	EnvPrefix string
	// Env looks a variable up. Nil means os.LookupEnv. A variable that is set
	// to nothing counts as not set.
	Env func(name string) (string, bool)
	// Flags were parsed; those given on the command line and named in FlagKeys
	// set the key that FlagKeys maps them to.
	Flags    *pflag.FlagSet
	FlagKeys map[string]string
}

// Load sets in dst, a pointer to a struct that holds the defaults, what the
// options' sources say, and then calls dst's Validate method, when it has one. The
// error is nil or an [*Error] with every problem found; dst is then not to be used.
func Load(dst any, opts Options) error {
	l := loader{fields: fieldsOf(dst), layers: viper.New(), sources: map[string]string{}}
	if opts.File != "" {
		l.file(readFile(opts.File, dst))
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

type loader struct {
	fields   []field
	layers   *viper.Viper      // what is set, as []string, by key; later layers cover earlier ones
	sources  map[string]string // where it was set
	problems []Problem
}

func (l *loader) set(key string, texts []string, source string) {
	l.layers.Set(key, texts)
	l.sources[key] = source
}

func (l *loader) file(f *file) {
	l.problems = append(l.problems, f.problems...)
	for key, v := range f.values {
		l.set(key, v.texts, v.source)
	}
}

func (l *loader) environment(opts Options) {
	lookup := opts.Env
	if lookup == nil {
		lookup = os.LookupEnv
	}
	for _, f := range l.fields {
		name := envName(opts.EnvPrefix, f.key)
		if text, ok := lookup(name); ok && text != "" {
			l.set(f.key, f.split(text), name)
		}
	}
}

func (l *loader) flags(opts Options) {
	fields := map[string]field{}
	for _, f := range l.fields {
		fields[f.key] = f
	}
	opts.Flags.Visit(func(flag *pflag.Flag) {
		key, ok := opts.FlagKeys[flag.Name]
		if !ok {
			return
		}
		f, ok := fields[key]
		if !ok {
			panic("config: flag --" + flag.Name + " sets the unknown key " + key)
		}
		texts := f.split(flag.Value.String())
		if list, ok := flag.Value.(pflag.SliceValue); ok {
			texts = list.GetSlice()
		}
		l.set(key, texts, "--"+flag.Name)
	})
}

// split takes a single text as a list where the field is one.
func (f field) split(text string) []string {
	if f.isList() {
		return splitList(text)
	}
	return []string{text}
}

// apply parses what is set into the fields.
func (l *loader) apply() {
	for _, f := range l.fields {
		if !l.layers.IsSet(f.key) {
			continue
		}
		for _, err := range leaves(f.set(l.layers.GetStringSlice(f.key))) {
			l.problems = append(l.problems, Problem{Key: f.key, Text: err.Error(), Source: l.sources[f.key]})
		}
	}
}

// validated takes over what Validate found and adds where the value was set. A
// problem begins with its key.
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
