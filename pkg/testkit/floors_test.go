package testkit_test

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

const repository = "../.."

// The floors that ARCHITECTURE.md draws are those that the linter holds, and
// every package of pkg stands on exactly one of them.
func TestFloors(t *testing.T) {
	drawn, held := drawnFloors(t), heldFloors(t)
	if diff := cmp.Diff(held, drawn); diff != "" {
		t.Errorf("ARCHITECTURE.md differs from .golangci.yml (-linter +picture):\n%s", diff)
	}
	for _, dir := range packages(t) {
		if strings.HasPrefix(dir, "pkg/testkit") {
			continue
		}
		var floors []string
		for floor, members := range held {
			if slices.ContainsFunc(members, func(m string) bool { return within(dir, m) }) {
				floors = append(floors, floor)
			}
		}
		if len(floors) != 1 {
			t.Errorf("%s stands on the floors %q, want exactly one", dir, floors)
		}
	}
}

// drawnFloors reads the picture: a floor's name and its members, which may go
// on in lines below.
func drawnFloors(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(repository + "/ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, picture, found := strings.Cut(string(text), "## Import rules\n\n")
	if !found {
		t.Fatal("ARCHITECTURE.md has no picture of who may import whom")
	}
	picture, _, _ = strings.Cut(picture, "\n\n")
	floors := map[string][]string{}
	floor := ""
	for line := range strings.Lines(picture) {
		fields := strings.Fields(line)
		if !strings.HasPrefix(line, "     ") {
			floor, fields = fields[0], fields[1:]
		}
		floors[floor] = append(floors[floor], fields...)
	}
	for _, members := range floors {
		slices.Sort(members)
	}
	return floors
}

// heldFloors reads the linter's rules named floor-x and the files they are for.
func heldFloors(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(repository + "/.golangci.yml")
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Linters struct {
			Settings struct {
				Depguard struct {
					Rules map[string]struct {
						Files []string
					}
				}
			}
		}
	}
	if err := yaml.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	floors := map[string][]string{}
	for name, rule := range config.Linters.Settings.Depguard.Rules {
		floor, isFloor := strings.CutPrefix(name, "floor-")
		if !isFloor {
			continue
		}
		if floor == "programs" {
			floor = "cmd"
		}
		for _, glob := range rule.Files {
			if glob == "!$test" {
				continue
			}
			member := strings.TrimPrefix(glob, "**/")
			member = regexp.MustCompile(`/\*\.go$`).ReplaceAllString(member, "")
			member = regexp.MustCompile(`/\*\*$`).ReplaceAllString(member, "/...")
			floors[floor] = append(floors[floor], member)
		}
		slices.Sort(floors[floor])
	}
	return floors
}

// within reports whether dir is the member, or below it where the member ends in "/...".
func within(dir, member string) bool {
	root, deep := strings.CutSuffix(member, "/...")
	return dir == root || deep && strings.HasPrefix(dir, root+"/")
}

// packages lists the directories under pkg that hold Go files.
func packages(t *testing.T) []string {
	t.Helper()
	var dirs []string
	err := filepath.WalkDir(repository+"/pkg", func(name string, _ fs.DirEntry, err error) error {
		if err == nil && path.Ext(name) == ".go" && !strings.HasSuffix(name, "_test.go") {
			rel, _ := filepath.Rel(repository, filepath.Dir(name))
			dirs = append(dirs, filepath.ToSlash(rel))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return slices.Compact(dirs)
}
