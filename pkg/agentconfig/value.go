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
	"github.com/metaflowys/metaflow-server/pkg/values"
)

// kind is a type of values. Errors of read are sentences that contain the
// value.
type kind[T any] struct {
	name   string // for people
	limits string // for people; empty if the name implies them
	read   func(input) (T, error)
	text   func(T) string // in YAML
}

// input is a value in a text, before parsing.
type input struct {
	node  *yaml.Node
	alias bool // the key has a name of the predecessor
}

// YAML tags of scalars.
const (
	tagBool  = "!!bool"
	tagInt   = "!!int"
	tagFloat = "!!float"
	tagText  = "!!str"
	tagNull  = "!!null"
)

// maxListItems exceeds what people write by hand, and a connection can still be
// compared with that many items in a microsecond.
const maxListItems = 256

func boolean() kind[bool] {
	const name = "true or false"
	return kind[bool]{
		name: name,
		read: func(in input) (bool, error) {
			text := in.node.Value
			switch b, err := values.Bool(text); {
			case in.tag() == tagBool && err == nil: // a text may have an explicit tag
				return b, nil
			case in.alias && in.tag() == tagInt && (text == "0" || text == "1"):
				return text == "1", nil // the predecessor's first generation used 0 and 1
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
		n, err := values.Whole(in.node.Value)
		switch {
		case err != nil:
			return 0, fmt.Errorf("%s %w", in.node.Value, err)
		case n < 0 || n > math.MaxUint16:
			return 0, in.outside(k.limits)
		}
		return int(n), nil
	}
	return k
}

// count is a whole number from 0.
func count(most int64) kind[int64] {
	format := func(n int64) string { return strconv.FormatInt(n, 10) }
	k := kind[int64]{name: "whole number", limits: "0 to " + format(most), text: format}
	k.read = func(in input) (int64, error) {
		if in.tag() != tagInt {
			return 0, in.not("a whole number")
		}
		n, err := values.Whole(in.node.Value)
		switch {
		case errors.Is(err, values.ErrRange), err == nil && (n < 0 || n > most):
			return 0, in.outside(k.limits)
		case err != nil:
			return 0, fmt.Errorf("%s %w", in.node.Value, err)
		}
		return n, nil
	}
	return k
}

func size(least, most int64) kind[int64] {
	k := kind[int64]{name: "size", limits: values.FormatSize(least) + " to " + values.FormatSize(most), text: values.FormatSize}
	k.read = func(in input) (int64, error) {
		tag := in.tag()
		if tag != tagInt && tag != tagText {
			return 0, in.not("a size such as 64MiB")
		}
		n, err := values.Size(in.node.Value)
		switch {
		case errors.Is(err, values.ErrRange), err == nil && (n < least || n > most):
			return 0, in.outside(k.limits)
		case err != nil:
			return 0, fmt.Errorf("%s %w", in, err)
		}
		return n, nil
	}
	return k
}

func duration(least, most time.Duration) kind[time.Duration] {
	k := kind[time.Duration]{name: "duration", limits: values.FormatDuration(least) + " to " + values.FormatDuration(most), text: values.FormatDuration}
	k.read = func(in input) (time.Duration, error) {
		if in.tag() != tagText && (in.tag() != tagInt || in.node.Value != "0") {
			return 0, in.not("a duration such as 10s, 5m, 1h30m or 30d")
		}
		d, err := values.Duration(in.node.Value)
		switch {
		case err != nil:
			return 0, fmt.Errorf("%s %w", in, err)
		case d < least || d > most:
			return 0, in.outside(k.limits)
		}
		return d, nil
	}
	return k
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
			if text := p.String(); text[0] == ':' { // a leading colon has a meaning in lists
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
			first, err := values.Whole(from)
			last, lastErr := values.Whole(to)
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
		text: func(o cors.Origin) string { return strconv.Quote(o.String()) }, // unquoted, YAML would interpret * and [
	}
}

func header() kind[cors.Header] {
	return kind[cors.Header]{
		name: "name of a header",
		read: textual("the name of a header", cors.ParseHeader),
		text: func(h cors.Header) string { return strconv.Quote(h.String()) },
	}
}

// textual returns a read function that uses parse, whose errors continue a
// sentence about the value.
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

// String returns one number, or two with a hyphen between them.
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
			var all []T
			var errs []error
			for _, node := range in.node.Content {
				value, err := item.read(input{node: node})
				all, errs = append(all, value), append(errs, err)
			}
			return all, errors.Join(errs...)
		},
		text: func(all []T) string {
			texts := make([]string, len(all))
			for i, v := range all {
				texts[i] = item.text(v)
			}
			return "[" + strings.Join(texts, ", ") + "]"
		},
	}
}

// tag returns the resolved tag of a scalar, or "".
func (in input) tag() string {
	if in.node.Kind != yaml.ScalarNode {
		return ""
	}
	return in.node.ShortTag()
}

// maxShown keeps a problem on one line of a terminal.
const maxShown = 60

// String returns the value as problems show it.
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

// found describes the value in an error.
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

// scalarText quotes text that YAML would interpret.
func scalarText(text string) string {
	out, err := yaml.Marshal(text)
	if err != nil || strings.Count(string(out), "\n") != 1 { // YAML folds long texts
		return strconv.Quote(text)
	}
	return strings.TrimSuffix(string(out), "\n")
}
