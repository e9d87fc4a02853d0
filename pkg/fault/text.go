package fault

import (
	"fmt"
	"strings"
)

// leftOut marks the gap in Shorten's result; leftOutBytes bounds its length.
const (
	leftOut      = " [%d bytes left out] "
	leftOutBytes = 40
)

// Shorten returns the beginning and the end of text, with the number of omitted bytes in
// between, if text is longer than most bytes. The result is valid UTF-8 of at most that
// many bytes; most must be at least 100. Use it for texts of other programs, which quote
// values of any size: the beginning names the error, the end its position.
func Shorten(text string, most int) string {
	if len(text) <= most {
		return strings.ToValidUTF8(text, "?")
	}
	end := (most - leftOutBytes) / 3
	begin := most - leftOutBytes - end
	return strings.ToValidUTF8(text[:begin], "?") + fmt.Sprintf(leftOut, len(text)-begin-end) +
		strings.ToValidUTF8(text[len(text)-end:], "?")
}
