package tempo

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/participle/v2"
	"github.com/alecthomas/participle/v2/lexer"

	"github.com/metaflowys/metaflow-server/pkg/query"
)

// maxQueryBytes bounds a query; Grafana's builder writes some hundred bytes.
const maxQueryBytes = 8 << 10

// The grammar. Operators that are parsed only to be refused by name stand beside the others.
type (
	traceQL struct {
		First  *spanset    `parser:"@@"`
		Rest   []*combined `parser:"@@*"`
		Stages []*stage    `parser:"( '|' @@ )*"`
		Hints  []string    `parser:"( 'with' '(' ( @Ident '=' ( Ident | Number | String ) ','? )* ')' )?"`
	}
	combined struct {
		Op      string   `parser:"@( '&&' | '||' | '>>' | '<<' | '>' | '<' | '~' | '!>>' | '!<<' | '!>' | '!<' | '!~' | '&>>' | '&<<' | '&>' | '&<' | '&~' )"`
		Spanset *spanset `parser:"@@"`
	}
	spanset struct {
		Empty  bool         `parser:"  '{' @'}'"`
		Braces *disjunction `parser:"| '{' @@ '}'"`
		Group  *traceQL     `parser:"| '(' @@ ')'"`
	}
	disjunction struct {
		Parts []*conjunction `parser:"@@ ( '||' @@ )*"`
	}
	conjunction struct {
		Parts []*condition `parser:"@@ ( '&&' @@ )*"`
	}
	condition struct {
		Group *disjunction `parser:"  '(' @@ ')'"`
		Left  string       `parser:"| @Ident"`
		Op    string       `parser:"  ( @( '=' | '!=' | '<' | '<=' | '>' | '>=' | '=~' | '!~' )"`
		Right *literal     `parser:"    @@ )?"`
	}
	literal struct {
		Text     *string `parser:"  @String"`
		Duration *string `parser:"| @Duration"`
		Number   *string `parser:"| @Number"`
		Word     *string `parser:"| @Ident"`
	}
	stage struct {
		Name   string   `parser:"@Ident '('"`
		Fields []string `parser:"( @Ident ( ',' @Ident )* )? ')'"`
		Rest   *filter  `parser:"@@?"`
	}
	filter struct {
		Op    string   `parser:"@( '=' | '!=' | '<' | '<=' | '>' | '>=' )"`
		Value *literal `parser:"@@"`
	}
)

// special are the characters that end a name.
const special = "\\s{}()=~!<>&|^,\"`"

var traceQLParser = participle.MustBuild[traceQL](
	participle.Lexer(lexer.MustSimple([]lexer.SimpleRule{
		{Name: "Space", Pattern: `\s+`},
		{Name: "Duration", Pattern: `-?\d+(\.\d+)?(ns|us|µs|ms|s|m|h)(\d+(\.\d+)?(ns|us|µs|ms|s|m|h))*`},
		{Name: "Number", Pattern: `-?\d+(\.\d+)?([eE][+-]?\d+)?`},
		{Name: "String", Pattern: "\"(\\\\.|[^\"\\\\])*\"|`[^`]*`"},
		{Name: "Ident", Pattern: `[.A-Za-z_]([^` + special + `]|"(\\.|[^"\\])*")*`},
		{Name: "Op", Pattern: `!>>|!<<|&>>|&<<|&&|\|\||!=|=~|!~|>=|<=|>>|<<|!>|!<|&>|&<|&~|[{}()=<>~|!,^]`},
	})),
	participle.Elide("Space"),
	participle.UseLookahead(2),
)

// parsed is a query as a search understands it.
type parsed struct {
	where query.Expr
	show  []query.Field
}

// parse reads a query. Errors wrap query.ErrBadRequest.
func parse(text string) (parsed, error) {
	if len(text) > maxQueryBytes {
		return parsed{}, fmt.Errorf("%w: a query of %d bytes is longer than %d", query.ErrBadRequest, len(text), maxQueryBytes)
	}
	q, err := traceQLParser.ParseString("", text)
	if err != nil {
		return parsed{}, fmt.Errorf("%w: traceql: %w", query.ErrBadRequest, err)
	}
	if n := q.spansets(); n > maxSpansets {
		return parsed{}, fmt.Errorf("%w: traceql: %d spansets are more than %d", query.ErrBadRequest, n, maxSpansets)
	}
	if n := q.conditions(); n > query.MaxConditions {
		return parsed{}, fmt.Errorf("%w: traceql: %d conditions are more than %d", query.ErrBadRequest, n, query.MaxConditions)
	}
	var p parsed
	if p.where, err = q.expr(); err != nil {
		return parsed{}, fmt.Errorf("%w: traceql: %w", query.ErrBadRequest, err)
	}
	if err := p.stages(q.Stages); err != nil {
		return parsed{}, fmt.Errorf("%w: traceql: %w", query.ErrBadRequest, err)
	}
	p.mention(p.where)
	return p, nil
}

func (p *parsed) stages(stages []*stage) error {
	for _, s := range stages {
		if s.Name != "select" || s.Rest != nil {
			return fmt.Errorf("%s() after | is not supported, only select()", s.Name)
		}
		for _, name := range s.Fields {
			f, err := fieldOf(name)
			if err != nil {
				return err
			}
			p.add(f)
		}
	}
	return nil
}

// mention shows the attributes that a query is about.
func (p *parsed) mention(e query.Expr) {
	switch e := e.(type) {
	case query.And:
		for _, part := range e {
			p.mention(part)
		}
	case query.Or:
		for _, part := range e {
			p.mention(part)
		}
	case query.Compare:
		p.add(e.Field)
	}
}

// maxSpansets bounds the spansets of a query. Each one that && joins is a query of its own
// over the traces, and stands there twice.
const maxSpansets = 6

func (q *traceQL) all() []*spanset {
	all := []*spanset{q.First}
	for _, c := range q.Rest {
		all = append(all, c.Spanset)
	}
	return all
}

// conditions counts the comparisons of a query.
func (q *traceQL) conditions() (n int) {
	for _, s := range q.all() {
		switch {
		case s.Group != nil:
			n += s.Group.conditions()
		case s.Braces != nil:
			n += s.Braces.conditions()
		}
	}
	return n
}

func (d *disjunction) conditions() (n int) {
	for _, and := range d.Parts {
		for _, c := range and.Parts {
			if c.Group != nil {
				n += c.Group.conditions()
			} else {
				n++
			}
		}
	}
	return n
}

// spansets counts the spansets of a query.
func (q *traceQL) spansets() (n int) {
	for _, s := range q.all() {
		if s.Group != nil {
			n += s.Group.spansets()
		} else {
			n++
		}
	}
	return n
}

// maxShown bounds the attributes of a span in a list.
const maxShown = 20

func (p *parsed) add(f query.Field) {
	switch f.Scope {
	case query.AnyScope, query.SpanScope, query.Resource, query.Instrument:
		if len(p.show) < maxShown && !slices.Contains(p.show, f) {
			p.show = append(p.show, f)
		}
	default:
	}
}

func (q *traceQL) expr() (query.Expr, error) {
	if len(q.Hints) > 0 && len(q.Stages) > 0 {
		return nil, fmt.Errorf("with() after | is not supported")
	}
	all, err := q.First.expr()
	if err != nil {
		return nil, err
	}
	// Operators apply from left to right. Spansets joined by && stand in both lists: each of
	// them must be in the trace, and a span of any of them is a hit.
	any, each := query.Or{all}, []query.Expr{all}
	join := func() query.Expr {
		if len(each) == 1 {
			return each[0]
		}
		and := query.And{any}
		for _, e := range each {
			and = append(and, query.InTrace{Where: e})
		}
		return and
	}
	for _, c := range q.Rest {
		next, err := c.Spanset.expr()
		if err != nil {
			return nil, err
		}
		switch c.Op {
		case "||":
			all = query.Or{join(), next}
			any, each = query.Or{all}, []query.Expr{all}
		case "&&": // all in one trace, not in one span
			any, each = append(any, next), append(each, next)
		default:
			return nil, fmt.Errorf("the structural operator %s is not supported: combine spansets by && or ||", c.Op)
		}
	}
	return join(), nil
}

func (s *spanset) expr() (query.Expr, error) {
	switch {
	case s.Group != nil:
		if len(s.Group.Stages) > 0 {
			return nil, fmt.Errorf("| within parentheses is not supported")
		}
		return s.Group.expr()
	case s.Braces != nil:
		return s.Braces.expr()
	default:
		return query.And{}, nil
	}
}

func (d *disjunction) expr() (query.Expr, error) {
	var or query.Or
	for _, c := range d.Parts {
		var and query.And
		for _, part := range c.Parts {
			e, err := part.expr()
			if err != nil {
				return nil, err
			}
			and = append(and, e)
		}
		if len(and) == 1 {
			or = append(or, and[0])
		} else {
			or = append(or, and)
		}
	}
	if len(or) == 1 {
		return or[0], nil
	}
	return or, nil
}

func (c *condition) expr() (query.Expr, error) {
	if c.Group != nil {
		return c.Group.expr()
	}
	if c.Op == "" {
		switch c.Left {
		case "true":
			return query.And{}, nil
		case "false":
			return query.Or{}, nil
		}
		c.Op, c.Right = "=", &literal{Word: new("true")}
	}
	value, err := c.Right.value()
	if err != nil {
		return nil, err
	}
	if c.Left == "nestedSetParent" { // Grafana asks for root spans by it
		if c.Op == "<" && value.Kind == query.Number && value.Num == 0 {
			return query.Compare{Field: query.Field{Name: query.FieldParentID}, Op: query.Equal, Value: query.Literal{Kind: query.Nil}}, nil
		}
		return nil, fmt.Errorf("nestedSetParent is only supported as nestedSetParent < 0, which root spans fulfil")
	}
	f, err := fieldOf(c.Left)
	if err != nil {
		return nil, err
	}
	return query.Compare{Field: f, Op: query.Op(c.Op), Value: value}, nil
}

func (l *literal) value() (query.Literal, error) {
	switch {
	case l.Text != nil:
		text, err := strconv.Unquote(*l.Text)
		if err != nil { // patterns have escapes that Go strings do not have
			text = strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace((*l.Text)[1 : len(*l.Text)-1])
		}
		return query.Str(text), nil
	case l.Duration != nil:
		d, err := time.ParseDuration(*l.Duration)
		return query.Dur(d), err
	case l.Number != nil:
		n, err := strconv.ParseFloat(*l.Number, 64)
		return query.Literal{Kind: query.Number, Num: n, Text: *l.Number}, err
	}
	switch w := *l.Word; w {
	case "true", "false":
		return query.Literal{Kind: query.Truth, Text: w}, nil
	case "nil":
		return query.Literal{Kind: query.Nil}, nil
	case "ok", "error", "unset", "server", "client", "producer", "consumer", "internal", "unspecified":
		return query.Keyword(w), nil
	default:
		return query.Literal{}, fmt.Errorf("%s on the right is not a value: a text stands in quotes, and fields are not compared with each other", w)
	}
}

// intrinsics are the names of fields that every span has, in both of TraceQL's forms.
var intrinsics = map[string]string{
	"name": query.FieldName, "span:name": query.FieldName,
	"status": query.FieldStatus, "span:status": query.FieldStatus,
	"statusMessage": query.FieldMessage, "span:statusMessage": query.FieldMessage,
	"kind": query.FieldKind, "span:kind": query.FieldKind,
	"duration": query.FieldDuration, "span:duration": query.FieldDuration,
	"traceDuration": query.FieldTraceTime, "trace:duration": query.FieldTraceTime,
	"rootName": query.FieldRootName, "trace:rootName": query.FieldRootName,
	"rootServiceName": query.FieldRootService, "trace:rootService": query.FieldRootService,
	"trace:id": query.FieldTraceID, "span:id": query.FieldSpanID, "span:parentID": query.FieldParentID, "parent": query.FieldParentID,
	"event:name": query.FieldEventName, "instrumentation:name": query.FieldScopeName, "instrumentation:version": query.FieldScopeVersion,
	"network.verdict": query.FieldVerdict,
}

// refused are TraceQL's other intrinsics.
var refused = []string{"event:timeSinceStart", "link:spanID", "link:traceID", "span:childCount", "childCount", "nestedSetLeft", "nestedSetRight"}

var scopes = []struct {
	prefix string
	scope  query.Scope
}{
	{"span.", query.SpanScope},
	{"resource.", query.Resource},
	{"event.", query.Event},
	{"link.", query.Link},
	{"instrumentation.", query.Instrument},
	{".", query.AnyScope},
}

// fieldOf reads the name of a field.
func fieldOf(name string) (query.Field, error) {
	if known, ok := intrinsics[name]; ok {
		return query.Field{Name: known}, nil
	}
	if slices.Contains(refused, name) {
		return query.Field{}, fmt.Errorf("%s is not supported", name)
	}
	for _, s := range scopes {
		key, ok := strings.CutPrefix(name, s.prefix)
		if !ok {
			continue
		}
		if strings.HasPrefix(key, `"`) {
			if text, err := strconv.Unquote(key); err == nil {
				key = text
			}
		}
		if key == "" {
			return query.Field{}, fmt.Errorf("%s names no attribute", name)
		}
		if s.scope == query.SpanScope || s.scope == query.AnyScope {
			if key == query.AttributeVerdict {
				return query.Field{Name: query.FieldVerdict}, nil
			}
		}
		return query.Field{Scope: s.scope, Name: key}, nil
	}
	return query.Field{}, fmt.Errorf("unknown field %s: attributes begin with a scope or a dot, as in span.http.route or .http.route", name)
}
