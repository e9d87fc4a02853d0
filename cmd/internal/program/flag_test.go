package program

import (
	"bytes"
	"testing"
	"time"
)

// A wrong value of a flag is answered with the flag, the value and what it takes.
func TestWrongValuesOfFlags(t *testing.T) {
	for arg, want := range map[string]string{
		"--yes=maybe":      `--yes "maybe" is neither true nor false`,
		"--port=x":         `--port "x" is not a whole number from 0 to 65535`,
		"-p70000":          `--port "70000" is not a whole number from 0 to 65535`,
		"--visitors=1.5":   `--visitors "1.5" is not a whole number`,
		"--timeout=2 days": `--timeout "2 days" is not a duration such as 10s, 5m, 1h30m or 30d`,
		`--only="0/1`:      `--only "\"0/1" is not a list separated by commas`,
		"--visitor=1":      "unknown flag: --visitor",
	} {
		root := Root("p", "")
		root.Flags().Bool("yes", false, "")
		root.Flags().Uint16P("port", "p", 0, "")
		root.Flags().Int("visitors", 0, "")
		root.Flags().StringSlice("only", nil, "")
		DurationVar(root.Flags(), new(time.Duration), "timeout", 0, "")
		var out bytes.Buffer
		if status := Run(t.Context(), root, []string{arg}, &out, &out); status != ExitUsage || out.String() != "p: "+want+"\nTry --help.\n" {
			t.Errorf("%s: status %d, %q; want %q", arg, status, out.String(), want)
		}
	}
}
