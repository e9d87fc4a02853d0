package fleet

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
)

// The default group always exists. Agents that name no group belong to it.
const (
	DefaultGroupID   = "g-default000"
	DefaultGroupName = "default"
)

const (
	// MaxGroups bounds the memory that commands can take. It is far more than operators
	// manage by hand.
	MaxGroups = 10_000
	// maxNameBytes still fits on one line of a table.
	maxNameBytes = 64
	idPrefix     = "g-"
	idLength     = len(idPrefix) + 10
)

// IDAlphabet contains the characters of the ten-character part of a group's id, after
// "g-".
const IDAlphabet = "abcdefghijklmnopqrstuvwxyz0123456789"

// Group is an agent group. It is a value; its Document never changes.
type Group struct {
	ID      string
	Name    string
	Created time.Time // zero for the default group
	// Revision grows with every change of Document.
	Revision uint64
	Document agentconfig.Document
}

// CheckID returns an error if id cannot be a group's id.
func CheckID(id string) error {
	if !isID(id) {
		return fmt.Errorf("%q is not an id of an agent group: it must be %q and ten of a-z and 0-9", id, idPrefix)
	}
	return nil
}

func isID(s string) bool {
	digits, ok := strings.CutPrefix(s, idPrefix)
	return ok && len(s) == idLength && strings.Trim(digits, IDAlphabet) == ""
}

// checkName returns an error if name cannot be a group's name. A name must be easy to
// write in a shell, in YAML and in a path, and must not look like an id.
func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("an agent group needs a name")
	case len(name) > maxNameBytes:
		return fmt.Errorf("%q is longer than the %d bytes that an agent group's name may have", name[:maxNameBytes]+"...", maxNameBytes)
	case !utf8.ValidString(name):
		return fmt.Errorf("%q is not UTF-8", name)
	case isID(name):
		return fmt.Errorf("%q looks like an id of an agent group, so it cannot be a name", name)
	}
	for i, r := range name {
		alphanumeric := unicode.IsLetter(r) || unicode.IsMark(r) || unicode.IsDigit(r)
		if !alphanumeric && (i == 0 || !strings.ContainsRune("-_.", r)) {
			return fmt.Errorf(`%q is not a valid name of an agent group: use letters and digits, and after the first also any of "-_."`, name)
		}
	}
	return nil
}

// groups indexes the groups by id and by name.
type groups struct {
	byID   map[string]Group
	byName map[string]string // to the id
}

func newGroups() groups {
	g := groups{byID: map[string]Group{}, byName: map[string]string{}}
	g.put(Group{ID: DefaultGroupID, Name: DefaultGroupName, Revision: firstRevision})
	return g
}

// firstRevision is the default group's revision before any command. revisionAt is greater
// for every offset.
const firstRevision = 1

func revisionAt(offset int64) uint64 { return uint64(offset) + firstRevision + 1 }

func (g *groups) put(group Group) {
	g.byID[group.ID] = group
	g.byName[group.Name] = group.ID
}

func (g *groups) remove(group Group) {
	delete(g.byID, group.ID)
	delete(g.byName, group.Name)
}

func (g *groups) find(idOrName string) (Group, bool) {
	if group, ok := g.byID[idOrName]; ok {
		return group, true
	}
	group, ok := g.byID[g.byName[idOrName]]
	return group, ok
}

// all returns the groups by name, the default group first.
func (g *groups) all() []Group {
	list := make([]Group, 0, len(g.byID))
	for _, group := range g.byID {
		list = append(list, group)
	}
	rank := func(g Group) int {
		if g.ID == DefaultGroupID {
			return 0
		}
		return 1
	}
	slices.SortFunc(list, func(a, b Group) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a.Name, b.Name))
	})
	return list
}
