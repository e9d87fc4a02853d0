package config_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	"pgregory.net/rapid"

	"github.com/metaflowys/metaflow-server/pkg/config"
	"github.com/metaflowys/metaflow-server/pkg/testkit/golden"
)

var update = flag.Bool("update", false, "rewrite golden files")

type role string

// program is a configuration with a field of every type.
type program struct {
	Roles   []role        `mapstructure:"roles" doc:"what this process does"`
	Kafka   kafka         `mapstructure:"kafka" doc:"the broker that spans wait in"`
	GRPC    grpc          `mapstructure:"grpc"`
	Log     logging       `mapstructure:"log"`
	Grace   time.Duration `mapstructure:"shutdown_grace" doc:"how long a stop may take"`
	Derived string        `mapstructure:"-"`
}

type kafka struct {
	Brokers     []string `mapstructure:"brokers" doc:"host:port of some of the brokers; the others are found through them"`
	Partitions  int      `mapstructure:"partitions" doc:"of the topic"`
	RecordBytes int64    `mapstructure:"max_record_bytes" unit:"bytes" doc:"largest record; the broker's own limit must not be smaller, or it refuses what we make, and then spans wait here for ever"`
	SASL        sasl     `mapstructure:"sasl"`
}

type sasl struct {
	Username string `mapstructure:"username" doc:"empty means no authentication"`
	Password string `mapstructure:"password" secret:"true" doc:"of username"`
	Pin      int    `mapstructure:"pin" secret:"true" doc:"second factor"`
}

type grpc struct {
	Listen string  `mapstructure:"listen" doc:"host:port"`
	TLS    bool    `mapstructure:"tls" doc:"encrypt"`
	Ratio  float64 `mapstructure:"ratio" doc:"part of memory"`
	Small  uint8   `mapstructure:"small" doc:"fits a byte"`
}

type logging struct {
	Level slog.Level `mapstructure:"level" doc:"DEBUG, INFO, WARN or ERROR"`
}

func defaults() program {
	return program{
		Roles: []role{"gateway", "writer"},
		Kafka: kafka{Partitions: 12, RecordBytes: 900 << 10},
		GRPC:  grpc{Listen: "0.0.0.0:20035", Ratio: 0.5},
		Grace: 30 * time.Second,
	}
}

func (p program) Validate() error {
	var errs []error
	if p.Kafka.Partitions <= 0 {
		errs = append(errs, config.Section("kafka", fmt.Errorf("partitions: %d is not positive", p.Kafka.Partitions)))
	}
	for i, r := range p.Roles {
		if r != "gateway" && r != "writer" && r != "control" {
			errs = append(errs, fmt.Errorf("roles[%d]: %q is not a role", i, r))
		}
	}
	return errors.Join(errs...)
}

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "server.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestMain removes variables from the environment that would interfere.
func TestMain(m *testing.M) {
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "METAFLOW_") {
			_ = os.Unsetenv(name)
		}
	}
	os.Exit(m.Run())
}

func setenv(t *testing.T, env map[string]string) {
	t.Helper()
	for name, value := range env {
		t.Setenv(name, value)
	}
}

func TestLoadPrecedence(t *testing.T) {
	tests := map[string]struct {
		file string
		env  map[string]string
		args []string
		want func(*program)
	}{
		"nothing set": {want: func(*program) {}},
		"a file": {
			file: "roles: [control]\nkafka:\n  brokers: [a:9092, 'b:9092']\n  max_record_bytes: 1.5MiB\ngrpc: {tls: true, ratio: 0.25, small: 255}\nlog:\n  level: warn\nshutdown_grace: 1m30s\n",
			want: func(p *program) {
				p.Roles = []role{"control"}
				p.Kafka.Brokers, p.Kafka.RecordBytes = []string{"a:9092", "b:9092"}, 3<<19
				p.GRPC.TLS, p.GRPC.Ratio, p.GRPC.Small = true, 0.25, 255
				p.Log.Level, p.Grace = slog.LevelWarn, 90*time.Second
			},
		},
		"text that looks like a number": {
			file: "kafka: {sasl: {username: 0123, password: 1.10}}",
			want: func(p *program) { p.Kafka.SASL.Username, p.Kafka.SASL.Password = "0123", "1.10" },
		},
		"keys and sections without a value": {file: "kafka:\n  partitions:\ngrpc:\n", want: func(*program) {}},
		"an empty file":                     {file: "\n# nothing\n", want: func(*program) {}},
		"an empty list":                     {file: "roles: []", want: func(p *program) { p.Roles = []role{} }},
		"a list in one text":                {file: "kafka: {brokers: 'a:1, b:2,'}", want: func(p *program) { p.Kafka.Brokers = []string{"a:1", "b:2"} }},
		"an anchor": {
			file: "roles: &r [writer]\nkafka: {brokers: *r}",
			want: func(p *program) { p.Roles, p.Kafka.Brokers = []role{"writer"}, []string{"writer"} },
		},
		"the environment over the file": {
			file: "kafka: {brokers: [a:1], partitions: 3}",
			env:  map[string]string{"METAFLOW_KAFKA_BROKERS": "c:3,d:4", "METAFLOW_KAFKA_MAX_RECORD_BYTES": "64MiB"},
			want: func(p *program) {
				p.Kafka.Brokers, p.Kafka.Partitions, p.Kafka.RecordBytes = []string{"c:3", "d:4"}, 3, 64<<20
			},
		},
		"a variable set to nothing": {
			file: "kafka: {partitions: 3}",
			env:  map[string]string{"METAFLOW_KAFKA_PARTITIONS": ""},
			want: func(p *program) { p.Kafka.Partitions = 3 },
		},
		"somebody else's variable": {env: map[string]string{"METAFLOW_CHDB_LIBRARY": "/lib"}, want: func(*program) {}},
		"flags over the environment": {
			file: "kafka: {partitions: 3}",
			env:  map[string]string{"METAFLOW_KAFKA_PARTITIONS": "4", "METAFLOW_ROLES": "writer"},
			args: []string{"--partitions=5", "--roles=control", "--roles=gateway", "--other=1"},
			want: func(p *program) { p.Kafka.Partitions, p.Roles = 5, []role{"control", "gateway"} },
		},
		"a flag not given": {env: map[string]string{"METAFLOW_KAFKA_PARTITIONS": "4"}, want: func(p *program) { p.Kafka.Partitions = 4 }},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			setenv(t, tc.env)
			opts := config.Options{
				EnvPrefix: "METAFLOW", OtherVariables: []string{"METAFLOW_CHDB_LIBRARY", "METAFLOW_CTL_"},
				Flags: pflag.NewFlagSet("", pflag.ContinueOnError),
			}
			opts.Flags.String("partitions", "99", "")
			opts.Flags.StringSlice("roles", nil, "")
			opts.Flags.String("other", "", "")
			opts.FlagKeys = map[string]string{"partitions": "kafka.partitions", "roles": "roles"}
			if err := opts.Flags.Parse(tc.args); err != nil {
				t.Fatal(err)
			}
			if tc.file != "" {
				opts.File = write(t, tc.file)
			}
			want, got := defaults(), defaults()
			tc.want(&want)
			if err := config.Load(&got, opts); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestLoadReportsEveryProblem(t *testing.T) {
	tests := map[string]struct {
		file string
		env  map[string]string
		want []string // FILE is the file's name
	}{
		"wrong types": {
			file: "kafka:\n  partitions: twelve\n  max_record_bytes: 64 megs\ngrpc:\n  tls: yep\n  ratio: half\n  small: 256\nshutdown_grace: 10\nlog: {level: loud}\n",
			want: []string{
				`kafka.partitions: "twelve" is not a whole number (FILE:2)`,
				`kafka.max_record_bytes: "64 megs" is not a size such as 64MiB, 900KiB or 1000000 (FILE:3)`,
				`grpc.tls: "yep" is neither true nor false (FILE:5)`,
				`grpc.ratio: "half" is not a number (FILE:6)`,
				`grpc.small: "256" is out of range (FILE:7)`,
				`log.level: "loud" is refused: slog: level string "loud": unknown name (FILE:9)`,
				`shutdown_grace: "10" is not a duration such as 10s, 5m, 1h30m or 30d (FILE:8)`,
			},
		},
		"out of range": {
			file: "kafka: {partitions: 99999999999999999999, max_record_bytes: 9999999999TiB}\ngrpc: {small: -1, ratio: .inf}",
			want: []string{
				`kafka.partitions: "99999999999999999999" is out of range (FILE:1)`,
				`kafka.max_record_bytes: "9999999999TiB" is out of range (FILE:1)`,
				`grpc.ratio: ".inf" is not a number (FILE:2)`,
				`grpc.small: "-1" is out of range (FILE:2)`,
			},
		},
		"half a byte": {
			file: "kafka: {max_record_bytes: 0.3KiB}",
			want: []string{`kafka.max_record_bytes: "0.3KiB" is not a whole number of bytes (FILE:1)`},
		},
		"misspelt keys": {
			file: "kafak: {brokers: [a:1]}\nkafka:\n  brokrs: [a:1]\n  zzz: 1\nlisten: here\n",
			want: []string{
				"kafak: unknown key, did you mean kafka? (FILE:1)",
				"kafka.brokrs: unknown key, did you mean kafka.brokers? (FILE:3)",
				"kafka.zzz: unknown key (FILE:4)",
				"listen: unknown key, did you mean grpc.listen? (FILE:5)",
			},
		},
		"values where sections belong, and the other way round": {
			file: "kafka: here\ngrpc:\n  listen: {host: a}\n  tls: [true]\nroles: [gateway, [writer]]\nlog:\n  - a\n",
			want: []string{
				"kafka: a single value where a section of keys is expected: brokers, max_record_bytes, partitions, sasl (FILE:1)",
				"grpc.listen: a section of keys where a single value is expected (FILE:3)",
				"grpc.tls: a list where a single value is expected (FILE:4)",
				"roles[1]: a list where a single value is expected (FILE:5)",
				"log: a list where a section of keys is expected: level (FILE:7)",
			},
		},
		"a key twice": {
			file: "kafka: {partitions: 1}\nkafka: {partitions: 2}\n",
			want: []string{"kafka: set twice (FILE:2)"},
		},
		"a key twice under two spellings": {
			file: "kafka: {partitions: 1}\nkafka.partitions: 2\n",
			want: []string{"kafka.partitions: set twice (FILE:2)"},
		},
		"what Validate finds, with where it was set": {
			file: "kafka: {partitions: 0}\n",
			env:  map[string]string{"METAFLOW_ROLES": "writer,reader"},
			want: []string{"kafka.partitions: 0 is not positive (FILE:1)", `roles[1]: "reader" is not a role (METAFLOW_ROLES)`},
		},
		"a wrong variable": {
			env:  map[string]string{"METAFLOW_GRPC_SMALL": "x"},
			want: []string{`grpc.small: "x" is not a whole number (METAFLOW_GRPC_SMALL)`},
		},
		"not YAML":      {file: "kafka: [", want: []string{"not YAML: did not find expected node content (FILE:1)"}},
		"two documents": {file: "roles: [writer]\n---\nroles: [gateway]\n", want: []string{"more than one YAML document; a configuration is one (FILE)"}},
		"secrets": {
			file: "kafka:\n  sasl:\n    pasword: hunter2\n    pin: hunter2\n    password: [hunter2]\n",
			env:  map[string]string{"METAFLOW_GRPC_SMALL": "-"},
			want: []string{
				"kafka.sasl.pasword: unknown key, did you mean kafka.sasl.password? (FILE:3)",
				"kafka.sasl.password: a list where a single value is expected (FILE:5)",
				"kafka.sasl.pin: *** is not a whole number (FILE:4)",
				`grpc.small: "-" is not a whole number (METAFLOW_GRPC_SMALL)`,
			},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			setenv(t, tc.env)
			opts := config.Options{EnvPrefix: "METAFLOW"}
			if tc.file != "" {
				opts.File = write(t, tc.file)
			}
			cfg := defaults()
			err := config.Load(&cfg, opts)
			var problems *config.Error
			if !errors.As(err, &problems) {
				t.Fatalf("Load = %v, want a *config.Error", err)
			}
			got := err.Error()
			if opts.File != "" {
				got = strings.ReplaceAll(got, opts.File, "FILE")
			}
			if diff := cmp.Diff(strings.Join(tc.want, "\n"), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Error("the error contains a secret")
			}
		})
	}
}

func TestMissingFileIsAProblem(t *testing.T) {
	cfg := defaults()
	err := config.Load(&cfg, config.Options{File: "/no/such/file.yaml"})
	var problems *config.Error
	if !errors.As(err, &problems) || !strings.Contains(err.Error(), "/no/such/file.yaml: no such file") {
		t.Errorf("Load = %v", err)
	}
}

func TestSection(t *testing.T) {
	err := config.Section("kafka", errors.Join(errors.New("brokers: none"), config.Section("tls", errors.Join(errors.New("ca_file: missing"), errors.New("key_file: missing")))))
	if want := "kafka.brokers: none\nkafka.tls.ca_file: missing\nkafka.tls.key_file: missing"; err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	if err := config.Section("kafka", nil); err != nil {
		t.Errorf("Section of nil = %v", err)
	}
}

// A variable with the prefix that sets no key is probably a mistake. Other
// programs, and Kubernetes for each service of the namespace, may set such
// variables too.
func TestUnknownVariables(t *testing.T) {
	const none = ""
	tests := map[string]struct {
		env  map[string]string
		want string
	}{
		"a misspelt key": {
			env:  map[string]string{"METAFLOW_KAFKA_BROKRS": "a:1"},
			want: "METAFLOW_KAFKA_BROKRS: the variable names no key, did you mean METAFLOW_KAFKA_BROKERS?",
		},
		"a secret's": {
			env:  map[string]string{"METAFLOW_KAFKA_SASL_PASSWRD": "hunter2"},
			want: "METAFLOW_KAFKA_SASL_PASSWRD: the variable names no key, did you mean METAFLOW_KAFKA_SASL_PASSWORD?",
		},
		"nothing like a key":    {env: map[string]string{"METAFLOW_FROBNICATE": "1"}, want: "METAFLOW_FROBNICATE: the variable names no key"},
		"a section":             {env: map[string]string{"METAFLOW_KAFKA": "a:1"}, want: "METAFLOW_KAFKA: the variable names no key"},
		"a key in lower case":   {env: map[string]string{"METAFLOW_grpc_listen": "a:1"}, want: "METAFLOW_grpc_listen: the variable names no key"},
		"nothing in it":         {env: map[string]string{"METAFLOW_KAFKA_BROKRS": ""}, want: none},
		"another prefix":        {env: map[string]string{"METAFLOWER": "1", "METAFLOWER_KAFKA": "1"}, want: none},
		"known":                 {env: map[string]string{"METAFLOW_CHDB_LIBRARY": "/lib"}, want: none},
		"nearly known":          {env: map[string]string{"METAFLOW_CHDB_LIBRARY_": "/lib"}, want: "METAFLOW_CHDB_LIBRARY_: the variable names no key"},
		"of a known family":     {env: map[string]string{"METAFLOW_CTL_TOKEN": "hunter2"}, want: none},
		"not quite of a family": {env: map[string]string{"METAFLOW_CTLTOKEN": "hunter2"}, want: "METAFLOW_CTLTOKEN: the variable names no key"},
		"links to a service": {
			env: map[string]string{
				"METAFLOW_SERVER_SERVICE_HOST": "10.96.0.7", "METAFLOW_SERVER_SERVICE_PORT": "20035", "METAFLOW_SERVER_SERVICE_PORT_OTLP_GRPC": "20035",
				"METAFLOW_SERVER_PORT": "tcp://10.96.0.7:20035", "METAFLOW_SERVER_PORT_20035_TCP": "tcp://10.96.0.7:20035",
				"METAFLOW_SERVER_PORT_20035_TCP_PROTO": "tcp", "METAFLOW_SERVER_PORT_20035_TCP_PORT": "20035", "METAFLOW_SERVER_PORT_20035_TCP_ADDR": "10.96.0.7",
				"METAFLOW_SERVER_PORT_53_UDP": "udp://10.96.0.7:53",
			},
			want: none,
		},
		"links to a service of IPv6": {env: map[string]string{"METAFLOW_A_SERVICE_HOST": "fd00::7", "METAFLOW_A_PORT": "tcp://[fd00::7]:1"}, want: none},
		"links to a service with the program's name": {
			env:  map[string]string{"METAFLOW_SERVICE_HOST": "10.96.0.7", "METAFLOW_PORT_8038_TCP": "tcp://10.96.0.7:8038"},
			want: none,
		},
		"a port of no service": {env: map[string]string{"METAFLOW_GRPC_PORT": "20035"}, want: "METAFLOW_GRPC_PORT: the variable names no key"},
		"a host of no service": {env: map[string]string{"METAFLOW_KAFKA_SERVICE_HOST": "kafka"}, want: "METAFLOW_KAFKA_SERVICE_HOST: the variable names no key"},
		"a mistake beside a service": {
			env:  map[string]string{"METAFLOW_KAFKA_SERVICE_HOST": "10.96.0.7", "METAFLOW_KAFKA_BROKRS": "a:1"},
			want: "METAFLOW_KAFKA_BROKRS: the variable names no key, did you mean METAFLOW_KAFKA_BROKERS?",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			setenv(t, tc.env)
			cfg := defaults()
			got := ""
			if err := config.Load(&cfg, config.Options{EnvPrefix: "METAFLOW", OtherVariables: []string{"METAFLOW_CHDB_LIBRARY", "METAFLOW_CTL_"}}); err != nil {
				got = err.Error()
			}
			if got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestKeys(t *testing.T) {
	cfg := defaults()
	cfg.Kafka.SASL.Password = "hunter2"
	got := map[string]config.Key{}
	for _, k := range config.Keys(&cfg, "METAFLOW") {
		got[k.Name] = k
	}
	want := []config.Key{
		{Name: "roles", Type: "list of text", Default: "gateway,writer", Doc: "what this process does", Env: "METAFLOW_ROLES"},
		{Name: "kafka.sasl.password", Type: "text", Default: "***", Doc: "of username", Env: "METAFLOW_KAFKA_SASL_PASSWORD", Secret: true},
		{Name: "log.level", Type: "text", Default: "INFO", Doc: "DEBUG, INFO, WARN or ERROR", Env: "METAFLOW_LOG_LEVEL"},
	}
	for _, k := range want {
		if diff := cmp.Diff(k, got[k.Name]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", k.Name, diff)
		}
	}
	if len(got) != 13 {
		t.Errorf("%d keys, want 13", len(got))
	}
}

func TestPrintGolden(t *testing.T) {
	effective, base := defaults(), defaults()
	effective.Kafka.Brokers = []string{"a:9092", "b:9092"}
	effective.Kafka.SASL = sasl{Username: "true", Password: "hunter2"}
	var got bytes.Buffer
	if err := config.Print(&got, &effective, &base, "METAFLOW"); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(got.String(), "hunter2") {
		t.Error("the output contains a secret")
	}
	const file = "testdata/print.yaml"
	golden.Check(t, file, got.String(), *update)
}

// Load reads the output of Print as the same configuration, except secrets.
func TestPrintLoadsAgain(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`[ -~é世]{0,12}`)
		listed := rapid.StringMatching(`[!-+\--~]{1,8}`)
		effective := program{
			Roles: []role{"writer"},
			Kafka: kafka{
				Brokers:     rapid.SliceOfN(listed, 0, 3).Draw(t, "brokers"),
				Partitions:  rapid.IntRange(1, 1000).Draw(t, "partitions"),
				RecordBytes: rapid.Int64().Draw(t, "bytes"),
				SASL:        sasl{Username: text.Draw(t, "username"), Password: text.Draw(t, "password")},
			},
			GRPC: grpc{
				Listen: text.Draw(t, "listen"), TLS: rapid.Bool().Draw(t, "tls"),
				Ratio: rapid.Float64().Draw(t, "ratio"), Small: rapid.Uint8().Draw(t, "small"),
			},
			Log:   logging{Level: slog.Level(rapid.IntRange(-8, 12).Draw(t, "level"))},
			Grace: time.Duration(rapid.Int64().Draw(t, "grace")),
		}
		base := defaults()
		var printed bytes.Buffer
		if err := config.Print(&printed, &effective, &base, "METAFLOW"); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "printed.yaml")
		if err := os.WriteFile(file, printed.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		got := defaults()
		if err := config.Load(&got, config.Options{File: file}); err != nil {
			t.Fatalf("%v\n%s", err, printed.Bytes())
		}
		effective.Kafka.SASL.Password = ""
		if diff := cmp.Diff(effective, got); diff != "" {
			t.Fatalf("(-printed +loaded):\n%s\n%s", diff, printed.Bytes())
		}
	})
}

func TestMalformedStructsPanic(t *testing.T) {
	tests := map[string]any{
		"not a pointer":       program{},
		"a field without key": &struct{ A int }{},
		"an unexported field": &struct {
			a int `mapstructure:"a"`
		}{},
		"an upper-case key": &struct {
			A int `mapstructure:"A"`
		}{},
		"a key that Kubernetes sets": &struct {
			A string `mapstructure:"port"`
		}{},
		"a key that Kubernetes sets in a section": &struct {
			A struct {
				B string `mapstructure:"service_host"`
			} `mapstructure:"server"`
		}{},
		"a map": &struct {
			A map[string]string `mapstructure:"a"`
		}{},
	}
	for name, dst := range tests {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			config.Keys(dst, "X")
		})
	}
}
