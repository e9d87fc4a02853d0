package agentconfig

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/metaflowys/metaflow-server/pkg/cors"
)

// kind is a type of values. Errors of read are sentences that name the value.
type kind[T any] struct {
	name   string // in words
	limits string // in words; empty when the name says it all
	read   func(input) (T, error)
	text   func(T) string // as YAML writes it
}

// input is a value in a text, not yet parsed.
type input struct {
	node  *yaml.Node
	alias bool // the key has a name of the predecessor
}

// Tags of YAML that scalars resolve to.
const (
	tagBool  = "!!bool"
	tagInt   = "!!int"
	tagFloat = "!!float"
	tagText  = "!!str"
	tagNull  = "!!null"
)

// maxListItems is far above what anybody writes by hand, and what a connection can be
// compared with in a microsecond.
const maxListItems = 256

func boolean() kind[bool] {
	const name = "true or false"
	return kind[bool]{
		name: name,
		read: func(in input) (bool, error) {
			switch text := strings.ToLower(in.node.Value); in.tag() {
			case tagBool:
				if text == "true" || text == "false" { // a tag may be written before any text
					return text == "true", nil
				}
			case tagInt: // the first generation of the predecessor wrote 0 and 1
				if in.alias && (text == "0" || text == "1") {
					return text == "1", nil
				}
			}
			return false, in.not(name)
		},
		text: strconv.FormatBool,
	}
}

func port() kind[int] {
	k := kind[int]{name: "whole number", limits: "0 to 65535", text: strconv.Itoa}
	k.read = func(in input) (int, error) {
		if in.tag() != tagInt {
			return 0, in.not("a whole number")
		}
		n, err := decimal(in.node.Value)
		if err == nil && (n < 0 || n > math.MaxUint16) {
			err = in.outside(k.limits)
		}
		return int(n), err
	}
	return k
}

// decimal refuses what YAML calls a whole number and people read as another one: 010
// is eight, 1_0 is ten.
func decimal(text string) (int64, error) {
	digits := strings.TrimPrefix(text, "-")
	if strings.Trim(digits, "0123456789") != "" || len(digits) > 1 && digits[0] == '0' {
		return 0, fmt.Errorf("%s is not a number in plain decimal digits", text)
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s is out of range", text)
	}
	return n, nil
}

func size(least, most int64) kind[int64] {
	k := kind[int64]{name: "size", limits: formatSize(least) + " to " + formatSize(most), text: formatSize}
	k.read = func(in input) (int64, error) {
		tag := in.tag()
		if tag != tagInt && tag != tagText {
			return 0, in.not("a size such as 64MiB")
		}
		n, err := parseSize(in.node.Value)
		switch {
		case err != nil:
			return 0, fmt.Errorf("%s %w", in, err)
		case n < least || n > most:
			return 0, in.outside(k.limits)
		}
		return n, nil
	}
	return k
}

// sizeUnits are in the order of printing: the largest that divides a size.
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

// parseSize returns errors that continue a sentence about the value.
func parseSize(text string) (int64, error) {
	notSize := errors.New("is not a size such as 64MiB, 900KiB or 1000000")
	digits := strings.TrimRight(text, "BKMGTibkmgtI ")
	unit := strings.TrimSpace(text[len(digits):])
	if digits == "" || strings.Trim(digits, "0123456789.") != "" { // neither signs nor exponents
		return 0, notSize
	}
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil {
		return 0, notSize
	}
	for _, u := range sizeUnits {
		if !strings.EqualFold(u.name, unit) {
			continue
		}
		bytes := n * float64(u.bytes)
		switch {
		case bytes > 1<<53: // where floating point begins to skip; above every limit
			return math.MaxInt64, nil
		case bytes != math.Trunc(bytes):
			return 0, errors.New("is not a whole number of bytes")
		}
		return int64(bytes), nil
	}
	return 0, notSize
}

func formatSize(n int64) string {
	for _, u := range sizeUnits[:4] {
		if n != 0 && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

func duration(least, most time.Duration) kind[time.Duration] {
	k := kind[time.Duration]{name: "duration", limits: formatDuration(least) + " to " + formatDuration(most), text: formatDuration}
	k.read = func(in input) (time.Duration, error) {
		if in.tag() != tagText {
			return 0, in.not("a duration such as 10s or 1m30s")
		}
		d, err := time.ParseDuration(in.node.Value)
		switch {
		case err != nil:
			return 0, fmt.Errorf("%s is not a duration such as 10s or 1m30s", in)
		case d < least || d > most:
			return 0, in.outside(k.limits)
		}
		return d, nil
	}
	return k
}

// formatDuration drops what time.Duration.String adds: 1m0s is 1m.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func cidr() kind[netip.Prefix] {
	return kind[netip.Prefix]{
		name: "CIDR",
		read: func(in input) (netip.Prefix, error) {
			p, err := netip.ParsePrefix(in.node.Value)
			switch {
			case in.tag() != tagText || err != nil:
				return p, in.not("a CIDR such as 10.0.0.0/8")
			case p != p.Masked():
				return p, fmt.Errorf("%s has bits set beyond its length; the network is %s", in, p.Masked())
			}
			return p, nil
		},
		text: func(p netip.Prefix) string {
			if text := p.String(); text[0] == ':' { // a colon begins a value in a list
				return strconv.Quote(text)
			}
			return p.String()
		},
	}
}

func portRange() kind[PortRange] {
	return kind[PortRange]{
		name: "port or range such as 8000-8099",
		read: func(in input) (PortRange, error) {
			tag := in.tag()
			if tag != tagInt && tag != tagText {
				return PortRange{}, in.not("a port or a range of ports such as 8000-8099")
			}
			from, to, isRange := strings.Cut(in.node.Value, "-")
			if !isRange {
				to = from
			}
			first, err := decimal(strings.TrimSpace(from))
			last, lastErr := decimal(strings.TrimSpace(to))
			switch {
			case cmp.Or(err, lastErr) != nil:
				return PortRange{}, fmt.Errorf("%s is not a port or a range of ports such as 8000-8099", in)
			case first < 1 || last < 1 || first > math.MaxUint16 || last > math.MaxUint16:
				return PortRange{}, in.outside("1 to 65535")
			case last < first:
				return PortRange{}, fmt.Errorf("%s ends before it begins", in)
			}
			return PortRange{uint16(first), uint16(last)}, nil
		},
		text: PortRange.String,
	}
}

func origin() kind[cors.Origin] {
	return kind[cors.Origin]{
		name: "origin",
		read: textual("an origin such as https://app.example.com", cors.ParseOrigin),
		text: func(o cors.Origin) string { return strconv.Quote(o.String()) }, // YAML reads * and [ otherwise
	}
}

func header() kind[cors.Header] {
	return kind[cors.Header]{
		name: "name of a header",
		read: textual("the name of a header", cors.ParseHeader),
		text: func(h cors.Header) string { return strconv.Quote(h.String()) },
	}
}

// textual reads what parse reads, whose errors continue a sentence about the value.
func textual[T any](wanted string, parse func(string) (T, error)) func(input) (T, error) {
	return func(in input) (value T, err error) {
		if in.tag() != tagText {
			return value, in.not(wanted)
		}
		if value, err = parse(in.node.Value); err != nil {
			return value, fmt.Errorf("%s %w", in, err)
		}
		return value, nil
	}
}

// String is one number, or two with a hyphen between them.
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

func list[T any](item kind[T]) kind[[]T] {
	return kind[[]T]{
		name: "list: " + item.name,
		read: func(in input) ([]T, error) {
			if in.node.Kind != yaml.SequenceNode {
				return nil, in.not("a list")
			}
			if n := len(in.node.Content); n > maxListItems {
				return nil, fmt.Errorf("%d values are more than the %d that a list may have", n, maxListItems)
			}
			var values []T
			var errs []error
			for _, node := range in.node.Content {
				value, err := item.read(input{node: node})
				values, errs = append(values, value), append(errs, err)
			}
			return values, errors.Join(errs...)
		},
		text: func(values []T) string {
			texts := make([]string, len(values))
			for i, v := range values {
				texts[i] = item.text(v)
			}
			return "[" + strings.Join(texts, ", ") + "]"
		},
	}
}

// tag is what a scalar resolves to; empty for what is no scalar.
func (in input) tag() string {
	if in.node.Kind != yaml.ScalarNode {
		return ""
	}
	return in.node.ShortTag()
}

// maxShown keeps a problem on one line of a terminal.
const maxShown = 60

// String is the value as problems show it.
func (in input) String() string {
	if in.node.Kind != yaml.ScalarNode {
		return in.found()
	}
	text := in.node.Value
	if len(text) > maxShown {
		text = strings.ToValidUTF8(text[:maxShown], "") + "..."
	}
	return strconv.Quote(text)
}

// found names what stands there.
func (in input) found() string {
	switch in.node.Kind {
	case yaml.MappingNode:
		return "a section of keys"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	default:
	}
	plain := in.node.Value
	if in.node.Style&yaml.TaggedStyle != 0 || len(plain) > maxShown {
		return in.String()
	}
	switch in.tag() {
	case tagNull:
		return "nothing"
	case tagBool:
		return plain
	case tagInt, tagFloat:
		return "the number " + plain
	default:
		return "the text " + in.String()
	}
}

func (in input) not(wanted string) error {
	return fmt.Errorf("%s where %s is expected", in.found(), wanted)
}

func (in input) outside(limits string) error {
	return fmt.Errorf("%s is out of range, %s", in, limits)
}

// scalarText quotes text where YAML would read something else.
func scalarText(text string) string {
	out, err := yaml.Marshal(text)
	if err != nil || strings.Count(string(out), "\n") != 1 { // YAML folds what is long
		return strconv.Quote(text)
	}
	return strings.TrimSuffix(string(out), "\n")
}
