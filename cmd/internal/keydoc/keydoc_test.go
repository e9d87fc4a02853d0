package keydoc

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/config"
)

func TestProgram(t *testing.T) {
	got := Program([]config.Key{
		{Name: "kafka.brokers", Type: "list of text", Default: "a:1,b:1", Doc: "where", Env: "P_KAFKA_BROKERS"},
		{Name: "kafka.tls.key", Type: "text", Default: "***", Doc: "if <none>", Env: "P_KAFKA_TLS_KEY", Secret: true},
		{Name: "group", Type: "text", Doc: "one of a|b", Env: "P_GROUP"},
	})
	want := "\n### Top level\n\n| key | value | default | meaning |\n|---|---|---|---|\n" +
		"| `group`<br>`P_GROUP` | string | none | one of a\\|b |\n" +
		"\n### `kafka`\n\n| key | value | default | meaning |\n|---|---|---|---|\n" +
		"| `kafka.brokers`<br>`P_KAFKA_BROKERS` | list of strings | `a:1,b:1` | where |\n" +
		"| `kafka.tls.key`<br>`P_KAFKA_TLS_KEY` | string | `***` | if &lt;none>; never printed |\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestGroup(t *testing.T) {
	got := Group([]agentconfig.Key{
		{Name: "inputs.flow.enabled", Type: "true or false", Default: "true", Doc: "Watch."},
		{Name: "inputs.integration.compression.trace", Aliases: []string{"a.b", "c"}, Type: "whole number", Range: "1 or 2", Default: "false", Doc: "Compress."},
	})
	want := "\n### `inputs.flow`\n\n| key | value | default | meaning |\n|---|---|---|---|\n" +
		"| `inputs.flow.enabled` | boolean | `true` | Watch. |\n" +
		"\n### `inputs.integration`\n\n| key | value | default | meaning |\n|---|---|---|---|\n" +
		"| `inputs.integration.compression.trace` | integer, 1 or 2 | `false` | Compress. The predecessor's name: `a.b`, `c`. |\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSections(t *testing.T) {
	page := "above\n<!-- begin a -->\nold\n<!-- end a -->\nbetween\n<!-- begin b -->\n<!-- end b -->\n"
	page, err := Replace(page, "b", "of b\n")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"a": "old\n", "b": "of b\n"} {
		if got, err := Section(page, name); err != nil || got != want {
			t.Errorf("section %s: %q, %v; want %q", name, got, err, want)
		}
	}
	for name, page := range map[string]string{
		"none":      "nothing",
		"no end":    "<!-- begin x -->\n",
		"reversed":  "<!-- end x -->\n<!-- begin x -->\n",
		"two of it": strings.Repeat("<!-- begin x -->\n<!-- end x -->\n", 2),
	} {
		if _, err := Section(page, "x"); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := Replace(page, "x", ""); err == nil {
			t.Errorf("%s: replaced", name)
		}
	}
}

func TestCheck(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(page, []byte("<!-- begin a -->\nold\n<!-- end a -->\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Check(page, "a", "new\n", false); err == nil || !strings.Contains(err.Error(), "make generate") {
		t.Errorf("an old page: %v", err)
	}
	for _, update := range []bool{true, false} {
		if err := Check(page, "a", "new\n", update); err != nil {
			t.Error(err)
		}
	}
	if err := Check(page, "b", "", false); err == nil {
		t.Error("no error for a missing section")
	}
}
