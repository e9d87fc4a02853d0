package query

import (
	"encoding/json"
	"io"
	"math"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/metaflowys/metaflow-server/pkg/query/mcp"
)

// model is a client of the tools over the shop's hour.
type model struct {
	t       *testing.T
	session *sdk.ClientSession
}

func connect(t *testing.T, transport sdk.Transport) model {
	t.Helper()
	session, err := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, nil).Connect(t.Context(), transport, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = session.Close() })
	return model{t, session}
}

// call asks a tool and reads its answer into out. It returns the text of an error.
func (m model) call(tool string, in map[string]any, out any) string {
	m.t.Helper()
	res, err := m.session.CallTool(m.t.Context(), &sdk.CallToolParams{Name: tool, Arguments: in})
	if err != nil {
		return err.Error()
	}
	text := res.Content[0].(*sdk.TextContent).Text
	if res.IsError {
		return text
	}
	if err := json.Unmarshal([]byte(text), out); err != nil {
		m.t.Fatalf("%s: %v: %s", tool, err, text)
	}
	return ""
}

// A model finds out over HTTP what is wrong, and where.
func TestModelFindsTheTrouble(t *testing.T) {
	r, db := reader(t, config())
	server := httptest.NewServer(r.Answers().BoundUnread(mcp.NewServer(r, db, "test").Handler()))
	t.Cleanup(server.Close)
	m := connect(t, &sdk.StreamableClientTransport{Endpoint: server.URL, DisableStandaloneSSE: true})

	var wrong struct {
		Troubles []struct{ Client, Server, Verdict, Why string }
	}
	if e := m.call("what_is_wrong", map[string]any{"minutes": 65}, &wrong); e != "" || len(wrong.Troubles) != 1 || wrong.Troubles[0].Verdict != "retransmission" || wrong.Troubles[0].Server != "paymentservice" {
		t.Errorf("what_is_wrong: %s %+v", e, wrong)
	}
	var edges struct {
		Edges []struct{ Client, Server, Verdict string }
	}
	if e := m.call("edges", map[string]any{"minutes": 65}, &edges); e != "" || len(edges.Edges) < 8 {
		t.Errorf("edges: %s %+v", e, edges)
	}
	var found struct {
		Traces []struct {
			TraceID string `json:"trace_id"`
			Root    string
			Network string
			Hits    []struct {
				SpanID string `json:"span_id"`
			} `json:"first_matches"`
		}
	}
	if e := m.call("find_traces", map[string]any{"service": "checkoutservice", "name": "Charge", "min_ms": 200, "kind": "client", "attributes": map[string]any{"rpc.method": "Charge"}, "minutes": 65, "limit": 2}, &found); e != "" || len(found.Traces) != 2 || found.Traces[0].Root != "frontend POST /checkout" || found.Traces[0].Network != "retransmission" {
		t.Fatalf("find_traces: %s %+v", e, found)
	}
	var trace struct {
		Spans []struct {
			SpanID  string `json:"span_id"`
			Network struct{ Verdict, Why string }
		}
	}
	id := found.Traces[0].TraceID
	if e := m.call("trace", map[string]any{"trace_id": id}, &trace); e != "" || len(trace.Spans) != 22 {
		t.Errorf("trace: %s %+v", e, trace)
	}
	for _, s := range trace.Spans {
		if s.SpanID == found.Traces[0].Hits[0].SpanID && (s.Network.Verdict != "retransmission" || s.Network.Why == "") {
			t.Errorf("the slow charge has %+v", s.Network)
		}
	}
	type missing struct {
		Stored int   `json:"stored_spans"`
		There  *bool `json:"span_is_stored"`
		Seen   []struct {
			Service string
			Last    *time.Time `json:"last_span"`
		} `json:"services"`
	}
	var one, whole missing
	if e := m.call("missing_span", map[string]any{"trace_id": id, "span_id": strings.ToUpper(trace.Spans[0].SpanID), "service": "nobody"}, &one); e != "" || one.Stored != 22 || one.There == nil || !*one.There {
		t.Errorf("missing_span: %s %+v", e, one)
	}
	for _, s := range one.Seen {
		if (s.Last == nil) != (s.Service == "nobody") {
			t.Errorf("missing_span: the last span of %s: %v", s.Service, s.Last)
		}
	}
	if len(one.Seen) != 7 {
		t.Errorf("missing_span: services %+v, want the six of the trace and nobody", one.Seen)
	}
	if e := m.call("missing_span", map[string]any{"trace_id": id}, &whole); e != "" || whole.Stored != 22 || whole.There != nil {
		t.Errorf("missing_span of a whole trace: %s %+v", e, whole)
	}
	if e := m.call("missing_span", map[string]any{"trace_id": id, "span_id": "zz"}, &whole); !strings.Contains(e, `span id "zz" is not up to 16 hexadecimal digits`) {
		t.Errorf("missing_span of a wrong id: %q", e)
	}
	var rows struct {
		Columns []string
		Rows    [][]any
		More    bool `json:"more_rows"`
	}
	if e := m.call("sql", map[string]any{"query": "/* services */ SELECT service_name, count(), nan FROM metaflow.spans WHERE start_time > now() - INTERVAL 2 HOUR GROUP BY service_name ORDER BY service_name"}, &rows); e != "" || len(rows.Rows) != 6 || rows.Rows[0][0] != "cartservice" || rows.Rows[0][2] != "NaN" {
		t.Errorf("sql: %s %+v", e, rows)
	}
	for statement, want := range map[string]string{
		"KILL QUERY WHERE 1":                "only SELECT",
		"-- SELECT\nSYSTEM STOP MERGES":     "only SELECT",
		"DROP TABLE metaflow.spans_local":   "only SELECT",
		"SELECT 1 SETTINGS max_threads = 1": "READONLY",
		"SELECT * FROM file('/etc/passwd')": "file is refused",
		"SELECT x":                          "UNKNOWN_IDENTIFIER",
	} {
		if e := m.call("sql", map[string]any{"query": statement}, &rows); !strings.Contains(e, want) {
			t.Errorf("%s: %q, want %s", statement, e, want)
		}
	}
	many := map[string]any{}
	for i := range 200 {
		many[strconv.Itoa(i)] = "x"
	}
	if e := m.call("find_traces", map[string]any{"attributes": many}, &found); !strings.Contains(e, "200 are more than 100") {
		t.Errorf("many attributes: %q", e)
	}
	release, err := r.Answers().Hold(math.MaxInt)
	if err != nil {
		t.Fatal(err)
	}
	if e := m.call("sql", map[string]any{"query": "SELECT 1"}, &rows); !strings.Contains(e, "Service Unavailable") {
		t.Errorf("while too much is unread: %q", e)
	}
	release()
	if e := m.call("sql", map[string]any{"query": "SELECT 1"}, &rows); e != "" {
		t.Errorf("afterwards: %q", e)
	}
	if e := m.call("what_is_wrong", map[string]any{"minutes": 100_000}, &wrong); !strings.Contains(e, "not between 1 and 1440") {
		t.Errorf("too many minutes: %q", e)
	}
}

// A model and a person are told when the network could not be read: it is not that nothing
// is known.
func TestNetworkThatIsNotReadInTime(t *testing.T) {
	cfg := config()
	cfg.NetworkTimeout = time.Nanosecond
	r, db := reader(t, cfg)
	found := newTempo(t).search(`{ resource.service.name = "paymentservice" && status = error }`)
	if len(found.Traces) == 0 {
		t.Fatal("the shop has no failed charge")
	}
	id := found.Traces[0].TraceID
	server := httptest.NewServer(r.Answers().BoundUnread(mcp.NewServer(r, db, "test").Handler()))
	t.Cleanup(server.Close)
	m := connect(t, &sdk.StreamableClientTransport{Endpoint: server.URL, DisableStandaloneSSE: true})
	var trace struct {
		Spans   []struct{}
		Known   bool `json:"network_known"`
		Missing bool `json:"network_missing"`
	}
	if e := m.call("trace", map[string]any{"trace_id": id}, &trace); e != "" || len(trace.Spans) == 0 || trace.Known || !trace.Missing {
		t.Errorf("trace: %s %+v", e, trace)
	}

	b := openPageOf(t, r)
	b.do(chromedp.Navigate(b.url+"/ui/#/trace/"+id), chromedp.WaitVisible(".waterfall .row", chromedp.ByQuery))
	if text := b.text("main p.bad-text"); !strings.HasPrefix(text, "What the network did could not be read, or not within query.network_timeout.") {
		t.Errorf("the page says %q", text)
	}
}

// Over standard I/O a model sees the tools, each of which only reads.
func TestModelListsTools(t *testing.T) {
	r, db := reader(t, config())
	toServer, fromClient := io.Pipe()
	toClient, fromServer := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- mcp.NewServer(r, db, "test").Run(t.Context(), toServer, fromServer) }()
	m := connect(t, &sdk.IOTransport{Reader: toClient, Writer: fromClient})
	tools, err := m.session.ListTools(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, tool := range tools.Tools {
		names = append(names, tool.Name)
		if tool.Annotations == nil || !tool.Annotations.ReadOnlyHint || len(tool.Description) < 80 {
			t.Errorf("%s: %+v %q", tool.Name, tool.Annotations, tool.Description)
		}
	}
	slices.Sort(names)
	if got := strings.Join(names, " "); got != "edges find_traces missing_span sql trace what_is_wrong" {
		t.Errorf("tools: %s", got)
	}
	if err := m.session.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Logf("the server ended with its input: %v", err)
	}
}
