package agentconfig

import (
	"maps"
	"slices"
)

// nearest returns the name that one which is not known was most likely meant to be:
// few edits away, or the same in another section. It returns "" when nothing is near.
func nearest(name string) string {
	known := slices.Collect(maps.Keys(names))
	known = slices.AppendSeq(known, maps.Keys(sections))
	slices.Sort(known)                                     // equally near: the same answer every time
	best, bestEdits := "", max(2, len(lastPart(name))/3)+1 // two letters exchanged are two edits
	for _, candidate := range known {
		if n := edits(name, candidate); n < bestEdits {
			best, bestEdits = candidate, n
		}
	}
	if best != "" {
		return best
	}
	for _, candidate := range known {
		if part := lastPart(candidate); len(name) <= maxShown && edits(lastPart(name), part) <= len(part)/4 {
			return candidate
		}
	}
	return ""
}

// edits is the Levenshtein distance of a and b, or more than their length when that
// cannot be small.
func edits(a, b string) int {
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
