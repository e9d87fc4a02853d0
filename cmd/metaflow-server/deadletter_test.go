package main

import (
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/deadletter"
	"github.com/metaflowys/metaflow-server/schema"
)

func TestReplaySummary(t *testing.T) {
	tests := map[string]deadletter.Report{
		"0 letters read, 0 spans and 0 flows sent again, 0 letters skipped because their data is unreadable": {},
		"1 letter read, 1 span and 0 flows sent again, 0 letters skipped because their data is unreadable": {
			Letters: 1, Items: map[string]int{schema.TopicSpans: 1},
		},
		"7 letters read, 5 spans and 1 flow sent again, 1 letter skipped because their data is unreadable," +
			" 2 letters omitted as copies of others, 1 item refused for ids or a size that writers do not store": {
			Letters: 7, Items: map[string]int{schema.TopicSpans: 5, schema.TopicFlows: 1}, Skipped: 1, Copies: 2, Refused: 1,
		},
	}
	for want, report := range tests {
		if got := summary(report); got != want {
			t.Errorf("summary(%+v) = %q, want %q", report, got, want)
		}
	}
}
