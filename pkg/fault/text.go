package fault

import (
	"fmt"
	"strings"
)

// leftOut is how Shorten marks the gap, and leftOutBytes the most that it takes.
const (
	leftOut      = " [%d bytes left out] "
	leftOutBytes = 40
)

// Shorten returns the beginning and the end of a text of another program that is longer than most
// bytes, and says how much is left out between them. The result is valid UTF-8 and has at most that many
// bytes; most is 100 at least. Such texts quote values of any size: the beginning says what is wrong, the
// end where.
func Shorten(text string, most int) string {
	if len(text) <= most {
		return strings.ToValidUTF8(text, "?")
	}
	end := (most - leftOutBytes) / 3
	begin := most - leftOutBytes - end
	return strings.ToValidUTF8(text[:begin], "?") + fmt.Sprintf(leftOut, len(text)-begin-end) +
		strings.ToValidUTF8(text[len(text)-end:], "?")
}
