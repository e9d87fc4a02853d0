package program

import "fmt"

// Count formats n with its noun, "1 letter" or "2 letters", for nouns whose
// plural ends in s.
func Count[N int | int64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
