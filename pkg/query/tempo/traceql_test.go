package tempo

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/pkg/query"
)

func TestParse(t *testing.T) {
	span := func(name string) query.Field { return query.Field{Scope: query.SpanScope, Name: name} }
	intrinsic := func(name string) query.Field { return query.Field{Name: name} }
	name := query.Compare{Field: intrinsic("name"), Op: "=", Value: query.Str("a")}
	failed := query.Compare{Field: intrinsic("status"), Op: "=", Value: query.Keyword("error")}
	for text, want := range map[string]query.Expr{
		`{}`:                     query.And{},
		` { true } `:             query.And{query.And{}}[0],
		`{ name = "a" }`:         name,
		"{ span:name = `a` }":    name,
		`{ (name = "a") }`:       name,
		`{ duration > 1m30.5s }`: query.Compare{Field: intrinsic("duration"), Op: ">", Value: query.Dur(90500 * time.Millisecond)},
		`{ name = "a" && status = error || span.b != -1.5 }`: query.Or{
			query.And{name, failed}, query.Compare{Field: span("b"), Op: "!=", Value: query.Literal{Kind: query.Number, Num: -1.5, Text: "-1.5"}},
		},
		`{ span."with space" = "say \"x\"" }`:      query.Compare{Field: span("with space"), Op: "=", Value: query.Str(`say "x"`)},
		`{ .http.status_code=~"5\\d+" }`:           query.Compare{Field: query.Field{Scope: query.AnyScope, Name: "http.status_code"}, Op: "=~", Value: query.Str(`5\d+`)},
		`{ span.flag }`:                            query.Compare{Field: span("flag"), Op: "=", Value: query.Literal{Kind: query.Truth, Text: "true"}},
		`{ event.x = nil }`:                        query.Compare{Field: query.Field{Scope: query.Event, Name: "x"}, Op: "=", Value: query.Literal{Kind: query.Nil}},
		`{ nestedSetParent < 0 }`:                  query.Compare{Field: intrinsic("span:parentID"), Op: "=", Value: query.Literal{Kind: query.Nil}},
		`{ network.verdict = "retransmission" }`:   query.Compare{Field: intrinsic("network.verdict"), Op: "=", Value: query.Str("retransmission")},
		`{ name = "a" } || { status = error }`:     query.Or{name, failed},
		`{ name = "a" } && { status = error }`:     query.And{query.Or{name, failed}, query.InTrace{Where: name}, query.InTrace{Where: failed}},
		`({ name = "a" }) with (most_recent=true)`: name,
		`{ name = "a" } && { status = error } && { name = "a" }`: query.And{
			query.Or{name, failed, name}, query.InTrace{Where: name}, query.InTrace{Where: failed}, query.InTrace{Where: name},
		},
	} {
		got, err := parse(text)
		if diff := cmp.Diff(want, got.where); diff != "" || err != nil {
			t.Errorf("%s: %v, -want +got:\n%s", text, err, diff)
		}
	}
}

// Queries as Grafana's builder and its links write them are understood. All of them are
// free of errors in Grafana's own grammar (the npm package @grafana/lezer-traceql 1.0.0).
func TestParseWhatGrafanaWrites(t *testing.T) {
	for _, text := range []string{
		`{}`,
		`{resource.service.name="frontend"}`,
		`{resource.service.name="frontend" && name="GET /cart" && status=error && duration>100ms}`,
		`{resource.service.name=~"frontend|cart" && span.http.route!~"/a|/b"}`,
		`{duration>1.5s && duration<1m && traceDuration>=2s}`,
		`{duration>5us && duration<=5ns || duration=1h}`,
		`{(status=error || status=unset) && (kind=client || kind=server)}`,
		`{kind=server && statusMessage!="" && rootName="a" && rootServiceName!="b"}`,
		`{span:name="a" && span:kind=server && span:status=error && span:statusMessage="b" && span:duration>1ms && span:id="c" && span:parentID="d"}`,
		`{trace:id="a" && trace:rootName="b" && trace:rootService="c" && trace:duration>1s}`,
		`{event:name="exception" && event.exception.type="a" && link.x="b" && instrumentation.y="c" && instrumentation:name="d" && instrumentation:version="e"}`,
		`{span.http.status_code>=500 && span.x=-1 && span.y=2.5 && span.z=true}`,
		`{span."a b"="c" && ."d e"!="f"}`,
		`{.app.user.id=nil || .app.user.id!=nil}`,
		`{status=error && resource.service.name != nil}`,
		`{name="a \"quoted\" name" || name=` + "`raw`" + `}`,
		`{resource.service.name="a"} && {resource.service.name="b"}`,
		`{span.a="x" && resource.b="y"} | select(resource.c, status, span.d)`,
		`{status=error} with (most_recent=true)`,
	} {
		if _, err := parse(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// The attribute that a span is shown with searches for the verdict, which is not stored.
func TestParseVerdictAttribute(t *testing.T) {
	want, err := parse(`{ network.verdict != "network clean" }`)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"span.metaflow.network.verdict", ".metaflow.network.verdict", `span."metaflow.network.verdict"`} {
		got, err := parse(`{ ` + name + ` != "network clean" }`)
		if diff := cmp.Diff(want.where, got.where); diff != "" || err != nil {
			t.Errorf("%s: %v, -want +got:\n%s", name, err, diff)
		}
	}
}

func TestParseShows(t *testing.T) {
	got, err := parse(`{ .a = 1 && name = "x" && resource.b != nil } | select(span.c, status, .a)`)
	want := []query.Field{{Scope: query.SpanScope, Name: "c"}, {Scope: query.AnyScope, Name: "a"}, {Scope: query.Resource, Name: "b"}}
	if diff := cmp.Diff(want, got.show); diff != "" || err != nil {
		t.Errorf("%v, -want +got:\n%s", err, diff)
	}
}

// What is not supported is refused by its name.
func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		``:                              "unexpected token",
		`{ name = "a"`:                  "unexpected token",
		`{ name = }`:                    "unexpected token",
		`{ a = 1 }`:                     "unknown field a: attributes begin with a scope or a dot",
		`{ . = 1 }`:                     "names no attribute",
		`{ .a = .b }`:                   "fields are not compared with each other",
		`{} > {}`:                       "structural operator >",
		`{} >> {}`:                      "structural operator >>",
		`{} !~ {}`:                      "structural operator !~",
		`{} | count() > 2`:              "count() after | is not supported",
		`{} | rate()`:                   "rate() after | is not supported",
		`{ parent.a = 1 }`:              "unknown field parent.a",
		`{ link:traceID = "a" }`:        "link:traceID is not supported",
		`{ event:timeSinceStart > 1s }`: "event:timeSinceStart is not supported",
		`{ !(.a = 1) }`:                 `unexpected token "!"`,
		`{ 2 < .a }`:                    `unexpected token "2"`,
		`{ .a + 1 = 2 }`:                `invalid input text "+ 1`,
		`{} | by(resource.a)`:           "by() after | is not supported",
		`{} | avg(duration) > 1s`:       "avg() after | is not supported",
		`{ .a = 1 } | rate() by (.b)`:   "unexpected token",
		`{ nestedSetParent = 3 }`:       "nestedSetParent < 0",
		"{" + strings.Repeat("(.a=1||.b=2)&&", 50) + "true}":       "101 conditions are more than 100",
		strings.Repeat("(", 10_000):                                "longer than",
		strings.Repeat("{}&&", 6) + "{}":                           "7 spansets are more than 6",
		strings.Repeat("({}&&", 6) + "{}" + strings.Repeat(")", 6): "7 spansets are more than 6",
	} {
		if got, err := parse(text); err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, query.ErrBadRequest) {
			t.Errorf("%.40s: %v, %v, want %q", text, got.where, err, want)
		}
	}
}

// FuzzParse holds parse to its contract for a query from anyone: no panic, and every
// failure is a bad request.
func FuzzParse(f *testing.F) {
	for _, s := range []string{`{}`, `{ .a = "b" && duration > 1ms || (span.c =~ "d") } | select(.e)`, "{ name = `x` } >> {}", strings.Repeat("{(", 4000)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := parse(text); err != nil && !errors.Is(err, query.ErrBadRequest) {
			t.Errorf("%q: %v is no bad request", text, err)
		}
	})
}

func TestLogfmt(t *testing.T) {
	got, err := logfmt(` service.name=shop  name="GET /cart" a=b=c empty= `)
	want := []tag{{"service.name", "shop"}, {"name", "GET /cart"}, {"a", "b=c"}, {"empty", ""}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(tag{})); diff != "" || err != nil {
		t.Errorf("%v, -want +got:\n%s", err, diff)
	}
	for _, wrong := range []string{"a", "=b", `a b=c`} {
		if _, err := logfmt(wrong); !errors.Is(err, query.ErrBadRequest) {
			t.Errorf("%q: %v", wrong, err)
		}
	}
}
