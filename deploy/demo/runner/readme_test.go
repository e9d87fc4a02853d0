package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The tables in README's sample of the demo have the columns that the demo prints.
func TestReadmeSample(t *testing.T) {
	readme, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	goldens, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(goldens) == 0 {
		t.Fatalf("goldens %v, %v", goldens, err)
	}
	printed := map[string]bool{}
	for _, name := range goldens {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			printed[headOf(line)] = true
		}
	}
	heads := regexp.MustCompile(`(?m)^    (?:FROM +TO|SERVICE|caller) .*$`).FindAllString(string(readme), -1)
	if len(heads) != 3 {
		t.Errorf("heads of tables in README: %q", heads)
	}
	for _, head := range heads {
		if !printed[headOf(head)] {
			t.Errorf("no golden has the head\n%s", head)
		}
	}
	if !strings.Contains(string(readme), everySpan) {
		t.Errorf("README lacks %q", everySpan)
	}
}

// headOf returns a head without its spaces and without the duration of the trace.
func headOf(head string) string {
	head = regexp.MustCompile(`[0-9.]+ ms`).ReplaceAllString(head, "")
	return strings.Join(strings.Fields(head), " ")
}
