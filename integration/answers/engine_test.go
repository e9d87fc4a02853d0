package answers

import (
	"context"
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

	"github.com/metaflowys/metaflow-server/integration/internal/shop"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
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
	return e, shop.Load(ctx, e)
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
