package values

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"
)

var syntaxError = regexp.MustCompile(`^yaml: (?:line ([0-9]+): )?(.*)`)

// SyntaxError returns the line and the cause of an error of the YAML parser about text.
// The parser gives no line for errors in the first one, and the line before for tabs.
func SyntaxError(text []byte, err error) (line int, cause string) {
	parts := syntaxError.FindStringSubmatch(err.Error())
	if parts == nil {
		return 0, err.Error()
	}
	line, _ = strconv.Atoi(parts[1])
	cause = parts[2]
	if line == 0 && !strings.Contains(cause, "control characters") && !strings.Contains(cause, "UTF-") { // those may be anywhere
		line = 1
	}
	if !strings.Contains(cause, "tab character") && !strings.Contains(cause, "cannot start any token") {
		return line, cause
	}
	n := 0
	for l := range bytes.Lines(text) {
		n++
		if indentation := l[:len(l)-len(bytes.TrimLeft(l, " \t"))]; n >= line && bytes.IndexByte(indentation, '\t') >= 0 {
			return n, "a tab in the indentation, where YAML allows only spaces"
		}
	}
	return line, cause
}
