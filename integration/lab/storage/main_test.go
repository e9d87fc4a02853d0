package main

import (
	"bytes"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
)

func TestMain(m *testing.M) {
	chengine.MaybeRunChild()
	goleak.VerifyTestMain(m)
}

// The variants that the decision rests on can still be measured.
func TestLabMeasures(t *testing.T) {
	for _, steady := range []string{"-steady=false", "-steady"} {
		var out bytes.Buffer
		args := []string{steady, "-spans", "400", "-block", "150", "-repeat", "1", "-dir", t.TempDir(), "-only", "exporter,chosen"}
		if err := run(t.Context(), args, &out); err != nil {
			t.Fatal(err)
		}
		if text := out.String(); strings.Count(text, "\n| chosen") != 3 || strings.Contains(text, "not possible") {
			t.Errorf("report of %s:\n%s", steady, text)
		}
	}
}
