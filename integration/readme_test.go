package integration

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The session with metaflow-ctl in README prints what README says.
func TestReadmeSession(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(repository(t), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile(`(?m)^    \$ metaflow-ctl agent-group list\n(?:    .*\n)+`).FindString(string(text))
	if block == "" {
		t.Fatal("README has no session")
	}
	s := startStandalone(t, t.TempDir())
	startAgent(t, t.TempDir(), s.at.GRPC)
	s.eventually(time.Minute, func() error {
		if !strings.Contains(mustCtl(t, s.at.HTTP, "agent", "list"), "running") {
			return errors.New("no agent runs")
		}
		return nil
	})
	dir := t.TempDir()
	for _, step := range strings.Split(block, "    $ ")[1:] {
		command, want, _ := strings.Cut(step, "\n")
		want = strings.ReplaceAll("\n"+want, "\n    ", "\n")[1:]
		words := strings.Fields(command)
		if words[0] == "cat" {
			if err := os.WriteFile(filepath.Join(dir, words[1]), []byte(want), 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		for i := range words {
			if _, err := os.Stat(filepath.Join(dir, words[i])); err == nil && strings.HasSuffix(words[i], ".yaml") {
				words[i] = filepath.Join(dir, words[i])
			}
		}
		got := mustCtl(t, s.at.HTTP, words[1:]...)
		if want != "" && got != want {
			t.Errorf("%s prints\n%s\nREADME says\n%s", command, got, want)
		}
	}
}
