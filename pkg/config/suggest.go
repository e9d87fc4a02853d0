package config

import (
	"slices"
	"strings"
)

// nearest returns the known key that key is most likely a misspelling of: the
// same name in another section, or few edits away. It returns "" when nothing is near.
func nearest(key string, known []string) string {
	slices.Sort(known)                                    // equally near: the same answer every time
	best, bestEdits := "", max(2, len(lastPart(key))/3)+1 // two letters exchanged are two edits
	for _, candidate := range known {
		if n := edits(key, candidate); n < bestEdits {
			best, bestEdits = candidate, n
		}
	}
	if best != "" {
		return best
	}
	for _, candidate := range known {
		if lastPart(candidate) == lastPart(key) {
			return candidate
		}
	}
	return ""
}

func lastPart(key string) string {
	return key[strings.LastIndexByte(key, '.')+1:]
}

// edits is the Levenshtein distance of a and b.
func edits(a, b string) int {
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
