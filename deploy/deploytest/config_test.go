package deploytest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	core "k8s.io/api/core/v1"
)

// configs are the definitions of values.schema.json that are generated from the
// programs' configuration.
var configs = map[string]struct {
	program string
	// Keys that the chart sets itself or keeps in a Secret.
	without []string
}{
	"serverConfig": {program: "metaflow-server", without: []string{"migrate_at_start"}},
	"agentConfig":  {program: "metaflow-agent", without: []string{"name", "id", "cluster"}},
}

// words are the keys whose value is one of a few words. TestWords checks them
// against the programs.
var words = map[string][]string{
	"roles":                  {"gateway", "writer", "control", "query"},
	"kafka.compression":      {"none", "gzip", "snappy", "lz4", "zstd"},
	"kafka.sasl.mechanism":   {"", "plain", "scram-sha-256", "scram-sha-512"},
	"clickhouse.compression": {"none", "lz4", "zstd"},
	"log.level":              {"debug", "info", "warn", "error"},
	"log.format":             {"json", "text"},
}

type schema = map[string]any

// types maps our configuration's types to JSON Schema.
var types = map[string]schema{
	"text":          {"type": "string"},
	"true or false": {"type": "boolean"},
	"whole number":  {"type": "integer"},
	"number":        {"type": "number"},
	"size":          {"anyOf": []any{schema{"type": "integer"}, schema{"type": "string", "pattern": `^[0-9]+([.][0-9]+)? ?([kKmMgGtT][iI]?)?[bB]?$`}}},
	"duration":      {"type": "string", "pattern": `^(0|([0-9]+([.][0-9]*)?(ns|us|µs|ms|s|m|h|d|w))+)$`},
}

var described = regexp.MustCompile(`(?s)^(.*)\n((?:list of )?)(text|true or false|whole number|number|size|duration), default .*, METAFLOW_[A-Z0-9_]+$`)

// configSchema converts the output of `config print` to a JSON Schema, without
// secrets.
func configSchema(t *testing.T, section *yaml.Node, prefix string, without []string) schema {
	t.Helper()
	properties := schema{}
	for i := 0; i < len(section.Content); i += 2 {
		name, value := section.Content[i], section.Content[i+1]
		key := prefix + name.Value
		if slices.Contains(without, key) || value.Tag == "!!null" {
			continue
		}
		comment := strings.ReplaceAll("\n"+name.HeadComment, "\n# ", "\n")[1:]
		if value.Kind == yaml.MappingNode {
			properties[name.Value] = configSchema(t, value, key+".", without)
			continue
		}
		m := described.FindStringSubmatch(comment)
		if m == nil {
			t.Fatalf("%s is described as %q", key, comment)
		}
		property := schema{}
		for k, v := range types[m[3]] {
			property[k] = v
		}
		if words[key] != nil {
			property["enum"] = words[key]
		}
		if name.Value == "listen" || strings.HasSuffix(name.Value, "_listen") {
			property["pattern"] = `:[0-9]{1,5}$`
			if strings.Contains(comment, "empty disables") {
				property["pattern"] = `^$|:[0-9]{1,5}$`
			}
		}
		if m[2] != "" {
			property = schema{"type": "array", "items": property}
		}
		property["description"] = strings.ReplaceAll(m[1], "\n", " ")
		properties[name.Value] = property
	}
	return schema{"type": "object", "additionalProperties": false, "properties": properties}
}

func printed(t *testing.T, program string) *yaml.Node {
	t.Helper()
	text, err := run(t, program, nil, "config", "print")
	if err != nil {
		t.Fatal(err)
	}
	var document yaml.Node
	if err := yaml.Unmarshal([]byte(text), &document); err != nil {
		t.Fatal(err)
	}
	return document.Content[0]
}

// The chart's schema has exactly the programs' keys.
func TestSchemaMatchesPrograms(t *testing.T) {
	file := filepath.Join(chartDir, "values.schema.json")
	var all schema
	if err := json.Unmarshal([]byte(read(t, file)), &all); err != nil {
		t.Fatal(err)
	}
	definitions, _ := all["$defs"].(schema)
	for name, c := range configs {
		want := configSchema(t, printed(t, c.program), "", c.without)
		text, err := json.Marshal(want) // as decoded from a file
		if err != nil {
			t.Fatal(err)
		}
		var generic any
		if err := json.Unmarshal(text, &generic); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(generic, definitions[name]); diff != "" && !*update {
			t.Errorf("%s differs from %s (-program +schema); run `make generate`\n%s", name, c.program, diff)
		}
		definitions[name] = generic
	}
	if !*update {
		return
	}
	var out strings.Builder
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(all); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(out.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// The schema and the program accept the same words.
func TestWords(t *testing.T) {
	for key, taken := range words {
		t.Run(key, func(t *testing.T) {
			for _, word := range append(taken, "sesame") {
				value := any(word)
				if key == "roles" {
					value = []string{word}
				}
				path := strings.Split(key, ".")
				slices.Reverse(path)
				for _, p := range path {
					value = map[string]any{p: value}
				}
				config := value.(map[string]any)
				if kafka, ok := config["kafka"].(map[string]any); ok && key == "kafka.sasl.mechanism" && word != "" {
					kafka["sasl"].(map[string]any)["username"], kafka["sasl"].(map[string]any)["password"] = "u", "p"
				}
				text, err := yaml.Marshal(config)
				if err != nil {
					t.Fatal(err)
				}
				if err := checkConfig(t, "metaflow-server", string(text)); (err == nil) != (word != "sesame") {
					t.Errorf("metaflow-server config check of %q: %v", word, err)
				}
			}
		})
	}
}

// The files in the ConfigMaps pass the programs' checks, and every environment
// variable next to them is a key of the program.
func TestChartConfigPassesCheck(t *testing.T) {
	keys := map[string]string{"server": variables(t, "metaflow-server"), "migrate": variables(t, "metaflow-server"), "schema": variables(t, "metaflow-server"), "agent": variables(t, "metaflow-agent"), "verify": variables(t, "metaflow-ctl", "verify")}
	for name := range matrix {
		t.Run(name, func(t *testing.T) {
			o := release{}.fromMatrix(t, name).objects(t)
			checked := 0
			var passwords []string
			for _, c := range o.template("metaflow-server").Spec.Containers {
				for _, e := range c.Env {
					if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
						passwords = append(passwords, e.Name+"=secret")
					}
				}
			}
			each(o, func(m *core.ConfigMap) {
				for file, text := range m.Data {
					program, ok := strings.CutSuffix(file, ".yaml")
					if !ok {
						continue
					}
					checked++
					env := passwords // of the server's container
					if program != "metaflow-server" {
						env = nil
					}
					if err := checkConfig(t, program, text, env...); err != nil {
						t.Errorf("%s: %v\n%s", m.Name, err, text)
					}
				}
			})
			if checked == 0 {
				t.Error("found no configuration")
			}
			for _, w := range o.workloads {
				for _, c := range slices.Concat(w.template.Spec.InitContainers, w.template.Spec.Containers) {
					for _, e := range c.Env {
						if strings.HasPrefix(e.Name, "METAFLOW_") && !strings.HasPrefix(e.Name, "METAFLOW_CTL_") && !strings.Contains(keys[c.Name], e.Name+"\n") {
							t.Errorf("%s: variable %s of container %s is not a key of its program", w, e.Name, c.Name)
						}
					}
				}
			}
		})
	}
}

func variables(t *testing.T, program string, command ...string) string {
	t.Helper()
	text, err := run(t, program, nil, append(command, "config", "print")...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(regexp.MustCompile(`METAFLOW_[A-Z0-9_]+`).FindAllString(text, -1), "\n") + "\n"
}
