package program

import (
	"bytes"
	"context"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// Packages and images have the chart's version.
func TestReleaseIsTheChartsVersion(t *testing.T) {
	chart, err := os.ReadFile("../../../deploy/helm/metaflow/Chart.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if m := regexp.MustCompile(`(?m)^appVersion: *"?([^"\n]+)`).FindSubmatch(chart); m == nil || string(m[1]) != Release {
		t.Errorf("Release is %s, appVersion of the chart %q", Release, m)
	}
}

func TestVersionAsFlagAndCommand(t *testing.T) {
	outputs := map[string]bool{}
	for _, arg := range []string{"version", "--version"} {
		var out bytes.Buffer
		if status := Run(context.Background(), Root("metaflow-test", ""), []string{arg}, &out, &out); status != ExitOK || !strings.HasPrefix(out.String(), "metaflow-test "+Release) {
			t.Errorf("%s: status %d, %q", arg, status, out.String())
		}
		outputs[out.String()] = true
	}
	if len(outputs) != 1 {
		t.Errorf("they differ: %v", outputs)
	}
}

func TestArgumentErrorsSayWhatToWrite(t *testing.T) {
	none := func(*cobra.Command, []string) error { return nil }
	for line, want := range map[string]string{
		"show":         "GROUP is missing; write: p show GROUP",
		"show a b":     `unexpected argument "b"; write: p show GROUP`,
		"list a b":     `unexpected argument "b"; write: p list [GROUP]`,
		"up now":       `unexpected argument "now"; write: p up`,
		"move a":       "TO is missing; write: p move FROM TO",
		"move a b c d": `unexpected argument "c"; write: p move FROM TO`,
	} {
		root := Root("p", "",
			&cobra.Command{Use: "show GROUP", Args: Args(cobra.ExactArgs(1)), RunE: none},
			&cobra.Command{Use: "list [GROUP]", Args: Args(cobra.MaximumNArgs(1)), RunE: none},
			&cobra.Command{Use: "move FROM TO", Args: Args(cobra.ExactArgs(2)), RunE: none},
			&cobra.Command{Use: "up", Args: Args(cobra.NoArgs), RunE: none})
		var out bytes.Buffer
		if status := Run(context.Background(), root, strings.Fields(line), &out, &out); status != ExitUsage || out.String() != "p: "+want+"\nTry --help.\n" {
			t.Errorf("%s: status %d, %q; want %q", line, status, out.String(), want)
		}
	}
}

// A mistaken command is answered with the one that it probably means, of another program too,
// also if it has flags that only that one knows.
func TestUnknownCommands(t *testing.T) {
	for line, want := range map[string]string{
		"migrate up --config f":        `unknown command "migrate" for "metaflow-ctl"; did you mean metaflow-server migrate?`,
		"config check":                 `unknown command "config" for "metaflow-ctl"; did you mean metaflow-agent config or metaflow-server config?`,
		"agnet list":                   `unknown command "agnet" for "metaflow-ctl"; did you mean agent?`,
		"agent lits -x":                `unknown command "lits" for "metaflow-ctl agent"; did you mean list?`,
		"agent migrate":                `unknown command "migrate" for "metaflow-ctl agent"`,
		"agent list --frobnicate here": "unknown flag: --frobnicate",
		"--frobnicate migrate":         "unknown flag: --frobnicate",
		"nothing":                      `unknown command "nothing" for "metaflow-ctl"`,
	} {
		list := &cobra.Command{Use: "list", Args: Args(cobra.NoArgs), RunE: func(*cobra.Command, []string) error { return nil }}
		root := Root("metaflow-ctl", "", Group("agent", "", list))
		var out bytes.Buffer
		if status := Run(t.Context(), root, strings.Fields(line), &out, &out); status != ExitUsage || out.String() != "metaflow-ctl: "+want+"\nTry --help.\n" {
			t.Errorf("%s: status %d, %q; want %q", line, status, out.String(), want)
		}
	}
}
