package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/opshttp"
	"github.com/metaflowys/metaflow-server/pkg/query"
	"github.com/metaflowys/metaflow-server/pkg/query/jaeger"
	"github.com/metaflowys/metaflow-server/pkg/query/mcp"
	"github.com/metaflowys/metaflow-server/pkg/query/tempo"
	"github.com/metaflowys/metaflow-server/pkg/query/ui"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/values"
)

// queries is the role query: it answers questions about what ClickHouse holds, in the ways
// of Tempo, Jaeger and MCP and on a page. It only reads.
type queries struct {
	*core

	db   *clickhouse.Reader
	http *opshttp.Server
	grpc *rpc.Server
}

// readLimits are those of the role query.
func (s *server) readLimits() clickhouse.ReadLimits {
	return clickhouse.ReadLimits{
		Time: s.Query.MaxExecutionTime, MemoryBytes: s.Query.MaxMemoryBytes, Rows: s.Query.MaxResultRows, Bytes: s.Query.MaxResultBytes, AtOnce: s.Query.MaxQueries,
	}
}

// openReader connects the role query to ClickHouse, with its own user if it has one.
func (s *server) openReader(log *slog.Logger) (*clickhouse.Reader, error) {
	cfg := s.ClickHouse
	if s.Query.Username != "" {
		cfg.Username, cfg.Password = s.Query.Username, s.Query.Password
	}
	return clickhouse.OpenReader(cfg, s.readLimits(), log)
}

// newQueries binds the ports of the role query. It does not connect to ClickHouse.
func newQueries(c *core) (_ *queries, err error) {
	q := &queries{core: c}
	defer func() {
		if err != nil {
			q.close()
		}
	}()
	if q.db, err = c.cfg.openReader(c.log); err != nil {
		return nil, err
	}
	reader := query.NewReader(c.cfg.Query, q.db, c.cfg.ClickHouse.Database, query.Options{Logger: c.log, Registerer: c.reg})
	q.http, err = opshttp.New(opshttp.Config{Listen: c.cfg.Query.HTTPListen, TLS: c.cfg.Query.TLS}, opshttp.Options{Key: "query", Listen: "query.http_listen", Logger: c.log, Checks: q.checks()})
	if err != nil {
		return nil, err
	}
	answers := reader.Answers()
	q.handle("/api/", query.Guard(c.tokens.askers, answers.Bound(tempo.NewHandler(reader))))
	q.handle("/mcp", query.Guard(c.tokens.askers, answers.BoundUnread(mcp.NewServer(reader, q.db, program.Version()).Handler())))
	q.handle("/ui/", ui.NewHandler(reader, ui.Options{
		Guard: func(h http.Handler) http.Handler { return query.Guard(c.tokens.askers, answers.Bound(h)) }, Grafana: c.cfg.Query.GrafanaURL, Jaeger: c.cfg.Query.JaegerURL,
	}))
	q.handle("GET /{$}", http.RedirectHandler("/ui/", http.StatusFound))
	q.grpc, err = newQueryGRPC(c, reader)
	return q, err
}

func newQueryGRPC(c *core, reader *query.Reader) (*rpc.Server, error) {
	cfg := rpc.DefaultConfig()
	cfg.Listen, cfg.TLS = c.cfg.Query.GRPCListen, c.cfg.Query.TLS
	opts := rpc.Options{
		ListenKey: "query.grpc_listen", TLSKey: "query.tls", Logger: c.log, ShutdownGrace: c.cfg.ShutdownGrace, Callers: c.tokens.askers, CallersKey: query.TokensKey,
		Answers: reader.Answers(), ReadTime: query.ReadTime,
	}
	opts.Services = append(opts.Services, jaeger.NewService(reader).Register)
	return rpc.New(cfg, nil, opts)
}

// handle adds a handler whose answers may take as long as a query. Pages of other sites
// cannot start queries.
func (q *queries) handle(pattern string, h http.Handler) {
	if q.cfg.Query.Open() && values.Loopback(q.cfg.Query.HTTPListen) {
		h = ownHost(h, ": set query.tokens to allow other names")
	}
	h = refuseSites(h, followsLink)
	patience := 2*q.cfg.Query.MaxExecutionTime + q.cfg.Query.NetworkTimeout + time.Minute
	q.http.Handle(pattern, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(patience)) // tests use a writer without deadlines
		h.ServeHTTP(w, r)
	}))
}

func (q *queries) needs() []kafka.Access { return nil }

func (q *queries) checks() []opshttp.Check {
	return []opshttp.Check{{Name: "query", Func: q.db.Ping}}
}

// run serves until ctx ends, and returns when all answers are given.
func (q *queries) run(ctx context.Context) error {
	q.log.Info("listening for queries", slog.String("http", q.http.Addr().String()), slog.String("grpc", q.grpc.Addr().String()))
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return q.http.Run(ctx) })
	g.Go(func() error { return q.grpc.Run(ctx) })
	return errors.Join(g.Wait(), q.db.Close())
}

func (q *queries) close() {
	if q.grpc != nil {
		_ = q.grpc.Close()
	}
	if q.http != nil {
		_ = q.http.Close()
	}
	if q.db != nil {
		_ = q.db.Close()
	}
}
