package answers

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/integration/internal/shop"
	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

var update = flag.Bool("update", false, "write the results into docs/query.md")

// running is the engine that all tests of this package share.
var running struct {
	once   sync.Once
	dir    string
	engine *chengine.Engine
	err    error
}

func TestMain(m *testing.M) {
	chengine.MaybeRunChild()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	code := m.Run()
	if running.engine != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := running.engine.Stop(ctx); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	if err := os.RemoveAll(running.dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	http.DefaultClient.CloseIdleConnections()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// engine is a ClickHouse that holds the shop's hour.
type engine struct {
	t      *testing.T
	engine *chengine.Engine
}

func open(t *testing.T) engine {
	t.Helper()
	running.once.Do(func() {
		if running.dir, running.err = os.MkdirTemp("", "answers"); running.err == nil { //nolint:usetesting // of all tests
			running.engine, running.err = load(running.dir)
		}
	})
	if running.err != nil {
		t.Fatal(running.err)
	}
	return engine{t, running.engine}
}

func load(dir string) (*chengine.Engine, error) {
	ctx := context.Background()
	e, err := chengine.Start(ctx, chengine.Options{DataDir: dir})
	if err != nil {
		return nil, err
	}
	cfg := clickhouse.DefaultConfig()
	cfg.Addresses = []string{e.NativeAddr()}
	db, err := clickhouse.Open(cfg, nil)
	if err != nil {
		return e, err
	}
	defer db.Close()
	if err := db.Migrate(ctx, clickhouse.Retention{}); err != nil {
		return e, err
	}
	ins, err := clickhouse.NewInserter(cfg, clickhouse.InserterOptions{})
	if err != nil {
		return e, err
	}
	defer ins.Close()
	hour := shop.New()
	block := columns.NewSpans()
	for _, r := range hour.Requests() {
		value, err := proto.Marshal(r)
		if err != nil {
			return e, err
		}
		refused, err := block.Append(value, columns.Source{Agent: "agent", Window: signal.WindowAt(shop.End, 24*time.Hour, time.Hour)})
		if err != nil || len(refused) > 0 {
			return e, fmt.Errorf("append spans: %d rejected, %w", len(refused), err)
		}
	}
	if err := ins.Insert(ctx, 0, columns.TableSpans, "spans", block.Input(), block.Rows()); err != nil {
		return e, err
	}
	var rows bytes.Buffer
	for _, f := range hour.Flows() {
		if err := json.NewEncoder(&rows).Encode(f); err != nil {
			return e, err
		}
	}
	_, err = ask(ctx, e, "INSERT INTO metaflow.flows_local FORMAT JSONEachRow "+rows.String(), nil)
	return e, err
}

// table returns a query's result as a formatted table.
func (q engine) table(query string) string {
	q.t.Helper()
	return q.ask(query, url.Values{
		"default_format":                   {"PrettyCompactMonoBlock"},
		"output_format_pretty_row_numbers": {"0"},
		"output_format_pretty_color":       {"0"},
		"max_threads":                      {"1"}, // sums of floats depend on the order
	})
}

func (q engine) ask(query string, settings url.Values) string {
	q.t.Helper()
	text, err := ask(q.t.Context(), q.engine, query, settings)
	if err != nil {
		q.t.Fatalf("%v, of\n%s", err, query)
	}
	return text
}

func ask(ctx context.Context, e *chengine.Engine, query string, settings url.Values) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+e.HTTPAddr()+"/?"+settings.Encode(), strings.NewReader(query))
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, text)
	}
	return string(text), err
}
