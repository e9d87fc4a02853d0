package values

import (
	"errors"
	"math"
	"math/big"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// ErrRange reports a value that is written correctly and too large to hold.
var ErrRange = errors.New("is out of range")

var (
	errBool     = errors.New("is neither true nor false")
	errWhole    = errors.New("is not a whole number")
	errPlain    = errors.New("is not a number in plain decimal digits")
	errNumber   = errors.New("is not a number")
	errSize     = errors.New("is not a size such as 64MiB, 900KiB or 1000000")
	errDuration = errors.New("is not a duration such as 10s, 5m, 1h30m or 30d")
	errPort     = errors.New("is not a port, 0 to 65535")
)

// Bool parses true or false, in lower case, in upper case or capitalized.
func Bool(text string) (bool, error) {
	switch strings.TrimSpace(text) {
	case "true", "True", "TRUE":
		return true, nil
	case "false", "False", "FALSE":
		return false, nil
	default:
		return false, errBool
	}
}

// Whole parses a whole number.
func Whole(text string) (int64, error) {
	text = strings.TrimSpace(text)
	switch {
	case plain(strings.TrimPrefix(text, "-")):
	case strings.ContainsAny(text, "0123456789"):
		return 0, errPlain
	default:
		return 0, errWhole
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, ErrRange
	}
	return n, nil
}

// plain reports whether text is decimal digits without a leading zero.
func plain(text string) bool {
	return text != "" && strings.Trim(text, "0123456789") == "" && (text[0] != '0' || len(text) == 1)
}

// Number parses a decimal number, which may have a fraction and an exponent.
func Number(text string) (float64, error) {
	text = strings.TrimSpace(text)
	digits := strings.TrimPrefix(text, "-")
	whole, _, _ := strings.Cut(digits, ".")
	if strings.Trim(digits, "0123456789.eE+-") != "" || strings.HasPrefix(digits, "+") {
		return 0, errNumber // strconv also accepts infinity and hexadecimal digits
	}
	if len(whole) > 1 && whole[0] == '0' && whole[1] != 'e' && whole[1] != 'E' {
		return 0, errPlain
	}
	n, err := strconv.ParseFloat(text, 64)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return 0, ErrRange
	case err != nil:
		return 0, errNumber
	}
	return n, nil
}

// sizeUnits are ordered for FormatSize: it takes the first that divides a size.
var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40},
	{"GiB", 1 << 30},
	{"MiB", 1 << 20},
	{"KiB", 1 << 10},
	{"TB", 1e12},
	{"GB", 1e9},
	{"MB", 1e6},
	{"KB", 1e3},
	{"B", 1},
	{"", 1},
}

// binaryUnits of sizeUnits are those that FormatSize writes.
const binaryUnits = 4

// maxSizeDigits is more than the digits of the largest int64 with a fraction
// down to 1/1024 of the smallest unit.
const maxSizeDigits = 64

// Size parses a number of bytes: a whole number, or a number with or without a
// fraction and a unit in any case, B, a power of 1024 (KiB, MiB, GiB, TiB) or of
// 1000 (KB, MB, GB, TB). White space may stand between the two. The product must
// be whole.
func Size(text string) (int64, error) {
	text = strings.TrimSpace(text)
	number := strings.TrimRight(text, "BKMGTIbkmgti")
	unit := text[len(number):]
	number = strings.TrimSpace(number)
	whole, fraction, broken := strings.Cut(strings.TrimPrefix(number, "-"), ".")
	if whole+fraction == "" || whole != "" && !plain(whole) || strings.Trim(fraction, "0123456789") != "" || broken && unit == "" {
		return 0, errSize
	}
	for _, u := range sizeUnits {
		if !strings.EqualFold(u.name, unit) {
			continue
		}
		if len(number) > maxSizeDigits {
			return 0, ErrRange
		}
		exact, ok := new(big.Rat).SetString(number)
		if !ok {
			return 0, errSize
		}
		bytes := exact.Mul(exact, new(big.Rat).SetInt64(u.bytes))
		switch {
		case !bytes.IsInt():
			return 0, errors.New("is not a whole number of bytes")
		case !bytes.Num().IsInt64():
			return 0, ErrRange
		}
		return bytes.Num().Int64(), nil
	}
	return 0, errSize
}

// FormatSize writes n in the largest unit that divides it; Size parses it back.
func FormatSize(n int64) string {
	for _, u := range sizeUnits[:binaryUnits] {
		if n != 0 && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// Duration parses a duration as Go writes it: numbers with units, such as 1h30m, or 0. It
// also knows d, a day of 24 hours, and w, a week of seven days.
func Duration(text string) (time.Duration, error) {
	text = strings.TrimSpace(text)
	sign, rest := int64(1), text
	if strings.ContainsAny(text, "dw") && strings.HasPrefix(text, "-") {
		sign, rest = -1, text[1:]
	}
	var long int64 // days and weeks, in nanoseconds
	for _, part := range longUnit.FindAllStringSubmatch(rest, -1) {
		hours, err := time.ParseDuration(part[1] + "h")
		n := hoursOf[part[2]]
		if err != nil || int64(hours) > (math.MaxInt64-long)/n {
			return 0, errDuration
		}
		long += int64(hours) * n
	}
	if left := longUnit.ReplaceAllString(rest, ""); left != rest {
		if left == "" {
			return time.Duration(sign * long), nil
		}
		rest = left
		if strings.ContainsAny(rest[:1], "+-") {
			return 0, errDuration
		}
	}
	d, err := time.ParseDuration(rest)
	if err != nil || strings.HasPrefix(text, "+") || int64(d) > math.MaxInt64-long {
		return 0, errDuration
	}
	return time.Duration(sign * (long + int64(d))), nil
}

var (
	longUnit = regexp.MustCompile(`([0-9]+[.]?[0-9]*|[.][0-9]+)([dw])`)
	hoursOf  = map[string]int64{"d": 24, "w": 7 * 24}
)

// FormatDuration writes d without the zero units that time.Duration.String adds:
// 720h instead of 720h0m0s. Duration parses it back.
func FormatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Port parses a port. 0 is one: it means "pick a free one" or "closed", as the key says.
func Port(text string) (uint16, error) {
	n, err := Whole(text)
	if err != nil || n < 0 || n > math.MaxUint16 {
		return 0, errPort
	}
	return uint16(n), nil
}
