package query

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/metaflowys/metaflow-server/integration/internal/shop"
	"github.com/metaflowys/metaflow-server/pkg/query"
	"github.com/metaflowys/metaflow-server/pkg/query/tempo"
	"github.com/metaflowys/metaflow-server/pkg/testkit/chtest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
	storage "github.com/metaflowys/metaflow-server/schema/jaegerstorage"
)

// No query of anybody's is an error of the server, and none that is typed an error at all.
func TestTempoTakesAnyQuery(t *testing.T) {
	a := newTempo(t)
	during := fmt.Sprintf("start=%d&end=%d", shop.Start.Unix(), shop.End.Unix())
	for _, q := range []string{
		"{ name = \"\x00\" }", "{ name = \"\xff\xfe\" }", `{ name = "$1 $2 ? @x {id:String} ' \" \\" }`, `{ name = "'" }`, "{ name = `\\` }", `{ name =~ "\\" }`,
		`{ name =~ "(((a{100}){100}){100})" }`, `{ name =~ "((a{1000}){1000}" }`, `{ name =~ "\\pL+\\C" }`, `{ name =~ "(?P<x>a)(?i)\\Qx" }`, `{ name =~ "` + strings.Repeat("(a|", 300) + strings.Repeat(")", 300) + `" }`,
		`{ name =~ "[\\x{10FFFF}-\\x{10FFFF}]{1000}" }`, `{ name =~ "(\\pL{50}|\\PN{50}){20}" }`,
		`{ span.x > 1e308 }`, `{ span.x > 1e999 }`, `{ span.x = -0 }`, `{ duration > 9999999h }`, `{ duration > -1h }`, `{ traceDuration > 1ns && rootName =~ ".*" }`,
		`{ span."" = 1 }`, `{ span."a\"b'c\\" = 1 }`, `{ span.a.b.c.$1 = "x" }`, `{ .` + strings.Repeat("a", 5000) + ` = 1 }`,
		`{ network.verdict = "reset" && network.verdict != "reset" }`, `{ network.verdict =~ ".*" || true }`, `{ true && false }`, `{ status }`, `{ kind }`,
		`{` + strings.Repeat(`.a=1||`, 99) + `.a=1}`, `{` + strings.Repeat(`.a=1&&`, 200) + `.a=1}`, `{` + strings.Repeat(`(`, 3000), strings.Repeat(`{}&&`, 5) + `{ name = "x" }`, `{ event.x =~ ".*" && link.y != nil && instrumentation.z = nil }`,
		`{ name = "x" } | select(` + strings.Repeat("span.a,", 500) + `span.b)`, `}}}}`, `&&`, `{&&}`, `"`, "`", `\`,
	} {
		escaped := url.QueryEscape(q)
		for _, path := range []string{"tags?scope=span&", "tag/span.http.route/values?", "tag/rootName/values?", "tag/status/values?", "tag/event.x/values?", "tag/duration/values?"} {
			if code, body := a.get("/api/v2/search/"+path+during+"&q="+escaped, ""); code != http.StatusOK && !strings.Contains(string(body), "pattern too large") {
				t.Errorf("%s of %.60q: %d %.300s", path, q, code, body)
			}
		}
		if code, body := a.get("/api/search?limit=1&"+during+"&q="+escaped, ""); code >= 500 {
			t.Errorf("search for %.60q: %d %.300s", q, code, body)
		}
	}
	for path, want := range map[string]int{
		"/api/search?limit=9223372036854775807&spss=9223372036854775807&" + during:                    http.StatusOK,
		"/api/search?limit=9223372036854775808&" + during:                                             http.StatusBadRequest,
		"/api/search?limit=-1&" + during:                                                              http.StatusBadRequest,
		"/api/search?start=8589934591&end=8589934592":                                                 http.StatusOK,
		"/api/v2/search/tags?limit=9223372036854775807&" + during:                                     http.StatusOK,
		"/api/v2/search/tags?scope=nothing&" + during:                                                 http.StatusOK,
		"/api/v2/search/tags?start=1&end=2000000000":                                                  http.StatusBadRequest,
		"/api/v2/search/tag/%00/values?" + during:                                                     http.StatusOK,
		"/api/v2/search/tag/" + strings.Repeat("a", 9000) + "/values?" + during:                       http.StatusOK,
		"/api/v2/search/tag/span.%22%24%31%3F%27/values?" + during:                                    http.StatusOK,
		"/api/v2/search/tag/name/values?limit=9223372036854775807&" + during:                          http.StatusOK,
		"/api/v2/search/tag/name/values?limit=x&" + during:                                            http.StatusBadRequest,
		"/api/v2/search/tag/status/values?limit=1&" + during + "&q=" + strings.Repeat("%7B", 100_000): http.StatusOK,
		"/api/search?" + during + "&tags=" + url.QueryEscape(strings.Repeat("a=b ", 3000)):            http.StatusBadRequest,
	} {
		if code, body := a.get(path, ""); code != want {
			t.Errorf("%.80s: %d %.300s, want %d", path, code, body, want)
		}
	}
}

// No parameters of a search over gRPC are an error of the server.
func TestJaegerTakesAnySearch(t *testing.T) {
	c := storage.NewTraceReaderClient(newJaeger(t))
	of := func(change func(*storage.TraceQueryParameters)) *storage.TraceQueryParameters {
		q := during(&storage.TraceQueryParameters{})
		change(q)
		return q
	}
	many := make([]*storage.KeyValue, 300)
	for i := range many {
		many[i] = tagged("a", "b")
	}
	for name, q := range map[string]*storage.TraceQueryParameters{
		"nothing":           {},
		"a negative depth":  of(func(q *storage.TraceQueryParameters) { q.SearchDepth = math.MinInt32 }),
		"the largest depth": of(func(q *storage.TraceQueryParameters) { q.SearchDepth = math.MaxInt32; q.ServiceName = "nobody" }),
		"odd times":         {StartTimeMin: &timestamppb.Timestamp{Seconds: math.MaxInt64, Nanos: math.MaxInt32}, StartTimeMax: &timestamppb.Timestamp{Seconds: math.MinInt64, Nanos: -1}},
		"the year 9999":     {StartTimeMin: timestamppb.New(time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)), StartTimeMax: timestamppb.New(time.Date(9999, 1, 2, 0, 0, 0, 0, time.UTC))},
		"the year 1600":     {StartTimeMin: timestamppb.New(time.Date(1600, 1, 1, 0, 0, 0, 0, time.UTC)), StartTimeMax: timestamppb.New(time.Date(1600, 1, 2, 0, 0, 0, 0, time.UTC))},
		"the end of time":   {StartTimeMin: timestamppb.New(time.Unix(0, math.MaxInt64).Add(-time.Minute)), StartTimeMax: timestamppb.New(time.Unix(0, math.MaxInt64))},
		"odd durations": of(func(q *storage.TraceQueryParameters) {
			q.DurationMin = &durationpb.Duration{Seconds: math.MaxInt64, Nanos: -5}
		}),
		"an odd kind":        of(func(q *storage.TraceQueryParameters) { q.Attributes = []*storage.KeyValue{tagged("span.kind", "'")} }),
		"a tag without text": of(func(q *storage.TraceQueryParameters) { q.Attributes = []*storage.KeyValue{{Key: ""}} }),
		"an odd verdict": of(func(q *storage.TraceQueryParameters) {
			q.Attributes = []*storage.KeyValue{tagged(query.AttributeVerdict, "$1")}
		}),
		"two verdicts": of(func(q *storage.TraceQueryParameters) {
			q.Attributes = []*storage.KeyValue{tagged(query.AttributeVerdict, "reset"), tagged(query.AttributeVerdict, query.Clean)}
		}),
		"odd texts":         of(func(q *storage.TraceQueryParameters) { q.ServiceName, q.OperationName = "$1 ? {x:String} '\x00", `\` }),
		"many tags":         of(func(q *storage.TraceQueryParameters) { q.Attributes = many }),
		"as many as may be": of(func(q *storage.TraceQueryParameters) { q.Attributes = many[:query.MaxConditions] }),
	} {
		stream, err := c.FindTraces(t.Context(), &storage.FindTracesRequest{Query: q})
		for err == nil {
			_, err = stream.Recv()
		}
		if !errors.Is(err, io.EOF) && status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := c.FindTraceIDs(t.Context(), &storage.FindTraceIDsRequest{Query: q}); err != nil && status.Code(err) != codes.InvalidArgument {
			t.Errorf("ids of %s: %v", name, err)
		}
	}
	if _, err := c.FindTraceIDs(t.Context(), &storage.FindTraceIDsRequest{Query: of(func(q *storage.TraceQueryParameters) { q.Attributes = many })}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("300 tags: %v", err)
	}
	for name, p := range map[string]*storage.GetTraceParams{
		"no id":         {},
		"a long id":     {TraceId: make([]byte, 17)},
		"no trace":      {TraceId: make([]byte, 16), StartTime: timestamppb.New(time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC))},
		"the year 9999": {TraceId: []byte("nobody's trace.."), EndTime: timestamppb.New(time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC))},
	} {
		stream, err := c.GetTraces(t.Context(), &storage.GetTracesRequest{Query: []*storage.GetTraceParams{p}})
		if err == nil {
			_, err = stream.Recv()
		}
		if !errors.Is(err, io.EOF) && status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Clients that leave at any moment leave no query in ClickHouse, and no share of a bound.
func TestClientsThatLeaveAtAnyMoment(t *testing.T) {
	cfg := config()
	r, _ := reader(t, cfg)
	c := storage.NewTraceReaderClient(dialJaeger(t, serveJaeger(t, r, query.ReadTime)))
	server := httptest.NewServer(r.Answers().Bound(tempo.NewHandler(r)))
	t.Cleanup(server.Close)
	during30 := fmt.Sprintf("start=%d&end=%d", shop.Start.Unix(), shop.End.Unix())
	all := during(&storage.TraceQueryParameters{})
	all.SearchDepth = 200
	verdicts := during(&storage.TraceQueryParameters{Attributes: []*storage.KeyValue{tagged(query.AttributeVerdict, "retransmission")}})
	ids, err := c.FindTraceIDs(t.Context(), &storage.FindTraceIDsRequest{Query: all})
	if err != nil || len(ids.TraceIds) < 10 {
		t.Fatalf("%d traces, %v", len(ids.GetTraceIds()), err)
	}
	get := &storage.GetTracesRequest{}
	for _, id := range ids.TraceIds[:10] {
		get.Query = append(get.Query, &storage.GetTraceParams{TraceId: id.TraceId})
	}
	fetch := func(ctx context.Context, path string) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+path, nil)
		if err != nil {
			t.Error(err)
			return
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	}
	read := func(stream grpc.ServerStreamingClient[storage.TracesData], err error) {
		for err == nil {
			_, err = stream.Recv()
		}
	}
	asks := []func(context.Context){
		func(ctx context.Context) { read(c.FindTraces(ctx, &storage.FindTracesRequest{Query: all})) },
		func(ctx context.Context) { read(c.GetTraces(ctx, get)) },
		func(ctx context.Context) { _, _ = c.FindTraceIDs(ctx, &storage.FindTraceIDsRequest{Query: verdicts}) },
		func(ctx context.Context) { fetch(ctx, "/api/search?limit=200&"+during30) },
		func(ctx context.Context) {
			fetch(ctx, "/api/v2/search/tags?"+during30+"&q="+url.QueryEscape(`{ status = error && `))
		},
		func(ctx context.Context) {
			fetch(ctx, "/api/search?"+during30+"&q="+url.QueryEscape(`{ network.verdict = "reset" }`))
		},
	}
	var asking sync.WaitGroup
	for i := range 120 {
		asking.Go(func() {
			ctx, leave := context.WithTimeout(t.Context(), time.Duration(i)*10*time.Millisecond)
			defer leave()
			asks[i%len(asks)](ctx)
		})
	}
	asking.Wait()
	conn := chtest.Open(t, engine)
	if err := wait.Poll(time.Minute, nil, func() error {
		var running uint64
		if err := conn.QueryRow(t.Context(), "SELECT count() FROM system.processes WHERE query LIKE '%FROM metaflow.%' AND query NOT LIKE '%system.processes%'").Scan(&running); err != nil || running > 0 {
			return fmt.Errorf("%d queries still run: %w", running, err)
		}
		return allRead(r, cfg)
	}); err != nil {
		t.Fatal(err)
	}
	for range cfg.MaxQueries { // all there are
		made, err := r.Answers().Make(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer made()
	}
}
