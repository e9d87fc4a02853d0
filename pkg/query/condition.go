package query

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Scope is where an attribute is looked for.
type Scope uint8

// Scopes of attributes. Intrinsic fields are those that every span has.
const (
	Intrinsic  Scope = iota
	AnyScope         // of the span, or else of its resource
	SpanScope        // of the span
	Resource         // of its resource
	Event            // of one of its events
	Link             // of one of its links
	Instrument       // of its instrumentation scope
)

// Field is what a condition is about.
type Field struct {
	Scope Scope
	Name  string
}

// Names of intrinsic fields.
const (
	FieldName         = "name"
	FieldStatus       = "status"
	FieldMessage      = "statusMessage"
	FieldKind         = "kind"
	FieldDuration     = "duration"
	FieldTraceID      = "trace:id"
	FieldSpanID       = "span:id"
	FieldParentID     = "span:parentID"
	FieldRootName     = "rootName"
	FieldRootService  = "rootServiceName"
	FieldTraceTime    = "traceDuration"
	FieldEventName    = "event:name"
	FieldScopeName    = "instrumentation:name"
	FieldScopeVersion = "instrumentation:version"
	FieldVerdict      = "network.verdict"
)

// Op compares a field with a value.
type Op string

// Operators. Those of patterns match the whole text.
const (
	Equal        Op = "="
	NotEqual     Op = "!="
	Less         Op = "<"
	LessEqual    Op = "<="
	Greater      Op = ">"
	GreaterEqual Op = ">="
	Match        Op = "=~"
	NotMatch     Op = "!~"
)

// Kind is the type of a Literal.
type Kind uint8

// Kinds of literals.
const (
	Text Kind = iota
	Number
	Duration
	Truth
	Nil
	Word // a status or a span kind
)

// Literal is a value in a condition.
type Literal struct {
	Kind Kind
	Text string // of Text, Truth and Word; of Number as written
	Num  float64
	Dur  time.Duration
}

// Str returns a literal text.
func Str(s string) Literal { return Literal{Kind: Text, Text: s} }

// Dur returns a literal duration.
func Dur(d time.Duration) Literal { return Literal{Kind: Duration, Dur: d} }

// Keyword returns a literal status or kind.
func Keyword(w string) Literal { return Literal{Kind: Word, Text: w} }

// Expr is a condition on one span.
type Expr interface {
	sql(c *compiler) (string, error)
}

// And is true if all of its conditions are; without any it is true.
type And []Expr

// Or is true if one of its conditions is.
type Or []Expr

// Compare compares a field.
type Compare struct {
	Field Field
	Op    Op
	Value Literal
}

// MaxConditions bounds the conditions of a search: ClickHouse evaluates each of them for every
// span.
const MaxConditions = 100

// compiler turns conditions into SQL over the columns of the view spans.
type compiler struct {
	*builder
	database string
	within   Range // of the traces' spans
}

func (a And) sql(c *compiler) (string, error) { return c.join(a, " AND ", "1") }

func (o Or) sql(c *compiler) (string, error) { return c.join(o, " OR ", "0") }

func (c *compiler) join(list []Expr, with, none string) (string, error) {
	if len(list) == 0 {
		return none, nil
	}
	parts := make([]string, len(list))
	for i, e := range list {
		part, err := e.sql(c)
		if err != nil {
			return "", err
		}
		parts[i] = "(" + part + ")"
	}
	return strings.Join(parts, with), nil
}

// exists returns a condition on the attribute being there.
func (f Field) exists(c *compiler) string {
	key := c.arg(f.Name)
	switch f.Scope {
	case SpanScope:
		return "mapContains(attributes, " + key + ")"
	case Resource:
		return "mapContains(resource_attributes, " + key + ")"
	case AnyScope:
		return fmt.Sprintf("mapContains(attributes, %s) OR mapContains(resource_attributes, %[1]s)", key)
	case Event:
		return fmt.Sprintf("arrayExists(m -> mapContains(m, %s), events.attributes)", key)
	case Link:
		return fmt.Sprintf("arrayExists(m -> mapContains(m, %s), links.attributes)", key)
	case Instrument:
		return "mapContains(scope_attributes, " + key + ")"
	case Intrinsic:
	}
	return "1"
}

// bad returns an error about a comparison.
func (e Compare) bad(format string, args ...any) error {
	return fmt.Errorf("%w: %s %s: %s", ErrBadRequest, e.Field, e.Op, fmt.Sprintf(format, args...))
}

// String returns the field as TraceQL writes it.
func (f Field) String() string {
	return map[Scope]string{Intrinsic: "", AnyScope: ".", SpanScope: "span.", Resource: "resource.", Event: "event.", Link: "link.", Instrument: "instrumentation."}[f.Scope] + f.Name
}

func (e Compare) sql(c *compiler) (string, error) {
	if e.Op == Match || e.Op == NotMatch {
		if e.Value.Kind != Text {
			return "", e.bad("a pattern is a text in quotes")
		}
		for _, pattern := range []string{e.Value.Text, anchored(e.Value.Text)} { // an open \Q is a pattern, but swallows the end of the other
			if _, err := regexp.Compile(pattern); err != nil {
				return "", e.bad("%v", err)
			}
		}
	}
	switch {
	case e.Field.Scope == Intrinsic:
		return e.intrinsic(c)
	case (e.Field.Scope == SpanScope || e.Field.Scope == AnyScope) && strings.HasPrefix(e.Field.Name, AttributePrefix):
		return "", e.bad("spans are shown with it, but it is not stored: search for the verdict, which is network.verdict in TraceQL and the tag metaflow.network.verdict in Jaeger")
	}
	return e.attribute(c)
}

// anchored returns a pattern that matches the whole text.
func anchored(pattern string) string { return "^(?:" + pattern + ")$" }

// text compares an expression whose value is text.
func (e Compare) text(c *compiler, of string) (string, error) {
	v := e.Value
	switch e.Op {
	case Match, NotMatch:
		not := ""
		if e.Op == NotMatch {
			not = "NOT "
		}
		return fmt.Sprintf("%smatch(%s, %s)", not, of, c.arg(anchored(v.Text))), nil
	case Equal, NotEqual:
		if v.Kind == Number || v.Kind == Text || v.Kind == Truth || v.Kind == Word {
			return fmt.Sprintf("%s %s %s", of, e.Op, c.arg(v.Text)), nil
		}
	case Less, LessEqual, Greater, GreaterEqual:
		if v.Kind == Number {
			return fmt.Sprintf("toFloat64OrNull(%s) %s %s", of, e.Op, c.arg(v.Num)), nil
		}
		if v.Kind == Text {
			return fmt.Sprintf("%s %s %s", of, e.Op, c.arg(v.Text)), nil
		}
	}
	return "", e.bad("the value cannot be compared with text")
}

// id compares an id, which may be written in short.
func (e Compare) id(c *compiler, of string, digits int) (string, error) {
	if e.Value.Kind != Text || e.Op != Equal && e.Op != NotEqual {
		return "", e.bad("an id is compared with = or != and a text")
	}
	id := strings.ToLower(e.Value.Text)
	if id == "" || len(id) > digits || strings.Trim(id, "0123456789abcdef") != "" {
		return "", e.bad("%.64q is not up to %d hexadecimal digits", e.Value.Text, digits)
	}
	if len(id) < digits {
		id = strings.Repeat("0", digits-len(id)) + id
	}
	return fmt.Sprintf("%s %s %s", of, e.Op, c.arg(id)), nil
}

func (e Compare) intrinsic(c *compiler) (string, error) {
	switch e.Field.Name {
	case FieldName:
		return e.text(c, "name")
	case FieldMessage:
		return e.text(c, "status_message")
	case FieldScopeName:
		return e.text(c, "scope_name")
	case FieldScopeVersion:
		return e.text(c, "scope_version")
	case FieldStatus:
		return e.word(c, "status_code", "ok", "error", "unset")
	case FieldKind:
		return e.word(c, "kind", "unspecified", "internal", "server", "client", "producer", "consumer")
	case FieldDuration:
		return e.duration(c, "duration_ns")
	case FieldTraceID:
		return e.id(c, "trace_id", 32)
	case FieldSpanID:
		return e.id(c, "span_id", 16)
	case FieldParentID:
		if e.Value.Kind == Nil {
			return "parent_span_id " + string(e.Op) + " ''", nil
		}
		return e.id(c, "parent_span_id", 16)
	case FieldEventName:
		inner, err := e.text(c, "n")
		return "arrayExists(n -> " + inner + ", events.name)", err
	case FieldRootName:
		inner, err := e.text(c, "name")
		return c.traces("parent_span_id = '' AND "+inner, ""), err
	case FieldRootService:
		inner, err := e.text(c, "service_name")
		return c.traces("parent_span_id = '' AND "+inner, ""), err
	case FieldTraceTime:
		inner, err := e.duration(c, "max(toUnixTimestamp64Nano(end_time)) - min(toUnixTimestamp64Nano(start_time))")
		return c.traces("1", " GROUP BY trace_id HAVING "+inner), err
	case FieldVerdict:
		return "", e.bad("network.verdict can only be combined with other conditions by &&, within one pair of braces")
	default:
		return "", e.bad("unknown intrinsic")
	}
}

// traces returns a condition on the span's trace.
func (c *compiler) traces(where, group string) string {
	return fmt.Sprintf("trace_id IN (SELECT trace_id FROM %s.spans WHERE %s%s%s)", c.database, where, c.builder.within(c.within), group)
}

func (e Compare) word(c *compiler, column string, words ...string) (string, error) {
	if e.Op == Match || e.Op == NotMatch {
		return e.text(c, "toString("+column+")")
	}
	if e.Value.Kind != Word && e.Value.Kind != Text || e.Op != Equal && e.Op != NotEqual {
		return "", e.bad("it is compared with = or != and one of %s", strings.Join(words, ", "))
	}
	for _, w := range words {
		if w == e.Value.Text {
			return fmt.Sprintf("%s %s '%s'", column, e.Op, w), nil
		}
	}
	return "", e.bad("%q is not one of %s", e.Value.Text, strings.Join(words, ", "))
}

func (e Compare) duration(c *compiler, of string) (string, error) {
	if e.Value.Kind != Duration || e.Op == Match || e.Op == NotMatch {
		return "", e.bad("a duration such as 100ms is required")
	}
	return fmt.Sprintf("%s %s %s", of, e.Op, c.arg(e.Value.Dur.Nanoseconds())), nil
}

// attribute compares an attribute. As in TraceQL, a span without it fulfils no comparison
// but the one with nil.
func (e Compare) attribute(c *compiler) (string, error) {
	if e.Value.Kind == Nil {
		has := e.Field.exists(c)
		switch e.Op {
		case NotEqual:
			return has, nil
		case Equal:
			return "NOT (" + has + ")", nil
		default:
			return "", e.bad("nil is compared with = or !=")
		}
	}
	if e.Value.Kind == Duration { // attributes hold no durations: nanoseconds, as the field shows
		e.Value = Literal{Kind: Number, Num: float64(e.Value.Dur), Text: strconv.FormatInt(int64(e.Value.Dur), 10)}
	}
	in := func(scope Scope) (string, error) { return Compare{Field{scope, e.Field.Name}, e.Op, e.Value}.sql(c) }
	switch e.Field.Scope {
	case AnyScope:
		// Two maps, so that equality reaches the index on the values of one.
		span, err := in(SpanScope)
		if err != nil {
			return "", err
		}
		resource, err := in(Resource)
		if e.Op == Equal {
			return fmt.Sprintf("(%s) OR (%s)", span, resource), err
		}
		return fmt.Sprintf("if(mapContains(attributes, %s), %s, %s)", c.arg(e.Field.Name), span, resource), err
	case Resource:
		if e.Field.Name == "service.name" {
			text, err := e.text(c, "service_name")
			return "service_name != '' AND " + text, err
		}
		return e.present(c, "resource_attributes")
	case Event:
		return e.exists(c, "events.attributes")
	case Link:
		return e.exists(c, "links.attributes")
	case Instrument:
		return e.present(c, "scope_attributes")
	default:
		return e.present(c, "attributes")
	}
}

// present compares the value in a map, where there is one.
func (e Compare) present(c *compiler, attributes string) (string, error) {
	key := c.arg(e.Field.Name)
	text, err := e.text(c, attributes+"["+key+"]")
	if e.Op == Equal && e.Value.Text != "" {
		return text, err
	}
	return fmt.Sprintf("mapContains(%s, %s) AND %s", attributes, key, text), err
}

func (e Compare) exists(c *compiler, list string) (string, error) {
	inner, err := e.present(c, "m")
	return fmt.Sprintf("arrayExists(m -> (%s), %s)", inner, list), err
}

// InTrace is true for all spans of traces with a span that fulfils the condition.
type InTrace struct{ Where Expr }

func (e InTrace) sql(c *compiler) (string, error) {
	inner, err := e.Where.sql(c)
	return c.traces("("+inner+")", ""), err
}
