// Package query asks the interfaces of the role query about a shop's last hour in a real
// ClickHouse.
package query

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/metaflowys/metaflow-server/integration/internal/shop"
	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/query"
	"github.com/metaflowys/metaflow-server/pkg/testkit/chtest"
)

// engine holds the hour that has just passed.
var engine *chengine.Engine

// reads is the user of all interfaces, with the grants that `migrate up` gives such a user.
const reads = "metaflow_query"

func TestMain(m *testing.M) {
	chengine.MaybeRunChild()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "query-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ctx := context.Background()
	if err := chtest.AddUsers(dir, chtest.User{Name: reads, Grants: []string{"SELECT ON metaflow.*"}}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if engine, err = chengine.Start(ctx, chengine.Options{DataDir: dir}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := 1
	shop.StartAt(time.Now().UTC().Truncate(time.Minute).Add(-time.Hour - time.Minute))
	if err := shop.Load(ctx, engine); err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	http.DefaultClient.CloseIdleConnections()
	stopping, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := engine.Stop(stopping); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// config is of a server whose tests may run on a busy machine.
func config() query.Config {
	cfg := query.DefaultConfig()
	cfg.HTTPListen, cfg.GRPCListen = "127.0.0.1:0", "127.0.0.1:0"
	cfg.MaxExecutionTime, cfg.NetworkTimeout = 2*time.Minute, 2*time.Minute
	return cfg
}

// reader returns a Reader of the shop's hour, and the connections beneath it.
func reader(t *testing.T, cfg query.Config) (*query.Reader, *clickhouse.Reader) {
	t.Helper()
	return readerWith(t, cfg, query.Options{})
}

func readerWith(t *testing.T, cfg query.Config, opts query.Options) (*query.Reader, *clickhouse.Reader) {
	t.Helper()
	ch := clickhouse.DefaultConfig()
	ch.Addresses, ch.Username = []string{engine.NativeAddr()}, reads
	db, err := clickhouse.OpenReader(ch, clickhouse.ReadLimits{Time: cfg.MaxExecutionTime, MemoryBytes: cfg.MaxMemoryBytes, Rows: cfg.MaxResultRows, Bytes: cfg.MaxResultBytes, AtOnce: cfg.MaxQueries}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return query.NewReader(cfg, db, ch.Database, opts), db
}

// contextOf returns a context that outlives the test until it is stopped.
func contextOf(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithCancel(context.WithoutCancel(t.Context()))
}
