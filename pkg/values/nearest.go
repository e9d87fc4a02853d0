package values

import (
	"slices"
	"strings"
)

// maxName bounds the names that Nearest compares; keys are shorter.
const maxName = 128

// Nearest returns the name of known that name most likely misspells, with its
// sections, which dots separate: the one that takes the fewest edits, or else one
// with nearly the same last part in another section. It returns "" when none is
// near. Among equally near names it returns the first in alphabetical order.
func Nearest(name string, known []string) string {
	if len(name) > maxName {
		return ""
	}
	known = slices.Sorted(slices.Values(known))
	best, bestEdits := "", max(2, len(LastPart(name))/3)+1 // two letters exchanged are two edits
	for _, candidate := range known {
		if n := Edits(name, candidate); n < bestEdits {
			best, bestEdits = candidate, n
		}
	}
	if best != "" {
		return best
	}
	for _, candidate := range known {
		if part := LastPart(candidate); Edits(LastPart(name), part) <= len(part)/4 {
			return candidate
		}
	}
	return ""
}

// LastPart returns what follows the last dot of name.
func LastPart(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

// Edits returns the Levenshtein distance of a and b in bytes: how many must be
// inserted, deleted or changed. When a is more than twice as long as b it returns
// only a number that is at least as large, so that the cost stays bounded by b.
func Edits(a, b string) int {
	if len(a) > 2*len(b)+2 {
		return len(a) + len(b)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
