package values_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/config"
)

// texts of values, with the value of a key of each kind that reads it. A kind that
// is missing refuses the text.
var texts = map[string]struct {
	size     int64
	duration time.Duration
	port     int
	boolean  string // true or false
}{
	"64MiB": {size: 64 << 20}, "64mib": {size: 64 << 20}, "64 MiB": {size: 64 << 20}, "2000KiB": {size: 2000 << 10}, "1.5GiB": {size: 3 << 29}, ".5GiB": {size: 1 << 29},
	"2MB": {size: 2e6}, "0.002GB": {size: 2e6}, "2000000B": {size: 2e6}, "2000000": {size: 2e6}, "1TiB": {size: 1 << 40}, "2.GiB": {size: 2 << 30},
	"10s": {duration: 10 * time.Second}, "1m30s": {duration: 90 * time.Second}, "1m05s": {duration: 65 * time.Second}, ".5m": {duration: 30 * time.Second}, "10000ms": {duration: 10 * time.Second}, "0d10s": {duration: 10 * time.Second}, "0.0005d": {duration: 43200 * time.Millisecond},
	"1": {port: 1}, "8080": {port: 8080}, "65535": {port: 65535},
	"true": {boolean: "true"}, "True": {boolean: "true"}, "TRUE": {boolean: "true"}, "false": {boolean: "false"}, "False": {boolean: "false"}, "FALSE": {boolean: "false"},

	// Numbers for others than people.
	"0x1p20": {}, "0x100000": {}, "0x10": {}, "0o17": {}, "0b11": {}, "010": {}, "0100000000": {}, "010MiB": {}, "2_000_000": {}, "8_080": {}, "2e6": {}, "2E+06": {}, "1e3": {}, "1e1s": {},
	"+8080": {}, "+2000000": {}, "+64MiB": {}, "+10s": {}, ".inf": {}, "inf": {}, "-Inf": {}, ".nan": {}, "NaN": {}, "190:20:30": {}, "1,000,000": {}, "1.500.000": {},
	// Units that nobody defined.
	"64M": {}, "64K": {}, "64megs": {}, "64 M iB": {}, "MiB": {}, "10 s": {}, "1 d": {}, "1D": {}, "10": {port: 10}, "10sec": {}, "s": {},
	// Not whole.
	"1.5": {}, "1.5B": {}, "0.3KiB": {}, "8080.0": {}, "8080.5": {},
	// Out of every range.
	"-1": {}, "-64MiB": {}, "-10s": {}, "65536": {}, "9223372036854775807": {}, "9223372036854775808": {}, "99999999999999999999TiB": {}, "9007199254740993TiB": {}, "9999999h": {},
	// Truth as other languages have it.
	"yes": {}, "no": {}, "on": {}, "off": {}, "y": {}, "t": {}, "tRuE": {}, "0": {},
	// Something else.
	"twelve": {}, "2026-01-02": {}, "''": {}, "½": {}, "٣": {}, "64MiB 64MiB": {}, "- 1": {}, "[]": {}, "[1]": {}, "{}": {}, "!!int x": {}, "!!bool x": {},
}

// limits are those of the keys of agent groups below; a program's keys get the same.
type limited struct {
	Size     int64         `mapstructure:"size" unit:"bytes"`
	Duration time.Duration `mapstructure:"duration"`
	Port     uint16        `mapstructure:"open_port"`
	Boolean  bool          `mapstructure:"boolean"`
}

// A text means the same to the configuration of a program and to that of an agent group, and
// both refuse the same texts. YAML's types are the exception: a group's key also refuses a number
// or a truth value in quotes.
func TestBothConfigurationsReadTheSame(t *testing.T) {
	file := filepath.Join(t.TempDir(), "program.yaml")
	program := func(key, text string) (limited, error) {
		if err := os.WriteFile(file, []byte(key+": "+text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg := limited{Size: -1, Duration: -1}
		err := config.Load(&cfg, config.Options{File: file})
		return cfg, err
	}
	group := func(key, text string) (agentconfig.Config, error) {
		doc, _, err := agentconfig.Parse([]byte(key + ": " + text + "\n"))
		return doc.Config(), err
	}
	for text, want := range texts {
		check := func(kind string, accepted bool, ofProgram, ofGroup error, same bool) {
			t.Helper()
			switch {
			case (ofGroup == nil) != accepted:
				t.Errorf("a group's %s: %s gives %v", kind, text, ofGroup)
			case (ofProgram == nil) != accepted:
				t.Errorf("a program's %s: %s gives %v", kind, text, ofProgram)
			case accepted && !same:
				t.Errorf("%s: %s is another value than %+v", kind, text, want)
			}
		}

		p, ofProgram := program("size", text)
		g, ofGroup := group("outputs.spool.max_bytes", text)
		if ofProgram == nil && (p.Size < 1<<20 || p.Size > 1<<40) {
			ofProgram = outside(ofGroup)
		}
		check("size", want.size != 0, ofProgram, ofGroup, p.Size == want.size && g.Spool.MaxBytes == want.size)

		p, ofProgram = program("duration", text)
		g, ofGroup = group("inputs.flow.report_interval", text)
		if ofProgram == nil && (p.Duration < 10*time.Second || p.Duration > 10*time.Minute) {
			ofProgram = outside(ofGroup)
		}
		check("duration", want.duration != 0, ofProgram, ofGroup, p.Duration == want.duration && g.Flow.ReportInterval == want.duration)

		p, ofProgram = program("open_port", text)
		g, ofGroup = group("inputs.integration.listen_port", text)
		check("port", want.port != 0 || text == "0", ofProgram, ofGroup, int(p.Port) == want.port && g.Integration.ListenPort == want.port)

		p, ofProgram = program("boolean", text)
		g, ofGroup = group("inputs.flow.enabled", text)
		check("boolean", want.boolean != "", ofProgram, ofGroup, p.Boolean == (want.boolean == "true") && g.Flow.Enabled == (want.boolean == "true"))
	}
}

// outside is the error of a group's key for a value that is written correctly and
// outside of the key's range, or nil when it is another error.
func outside(err error) error {
	if err != nil && strings.Contains(err.Error(), "is out of range") {
		return err
	}
	return nil
}

// Both name the same key for the same mistake.
func TestBothConfigurationsNameTheNearestKey(t *testing.T) {
	type section struct {
		MaxBytes int64 `mapstructure:"max_bytes"`
	}
	file := filepath.Join(t.TempDir(), "program.yaml")
	for _, text := range []string{"outputs.spool.max_byte: 1", "outputs.spool.maxbytes: 1", "outputs.spol.max_bytes: 1", "spool.max_bytes: 1", "max_byte: 1", "zzz: 1"} {
		_, _, ofGroup := agentconfig.Parse([]byte(text))
		var cfg struct {
			Outputs struct {
				Spool section `mapstructure:"spool"`
			} `mapstructure:"outputs"`
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		ofProgram := config.Load(&cfg, config.Options{File: file})
		const near = "did you mean outputs.spool.max_bytes?"
		want := !strings.HasPrefix(text, "zzz")
		if ofGroup == nil || ofProgram == nil || strings.Contains(ofGroup.Error(), near) != want || strings.Contains(ofProgram.Error(), near) != want {
			t.Errorf("%s\na group says   %v\na program says %v", text, ofGroup, ofProgram)
		}
	}
}
