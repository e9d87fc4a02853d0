package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	role "github.com/metaflowys/metaflow-server/pkg/query"
	"github.com/metaflowys/metaflow-server/pkg/query/jaeger"
	"github.com/metaflowys/metaflow-server/pkg/query/tempo"
	storage "github.com/metaflowys/metaflow-server/schema/jaegerstorage"
)

// askAPIs prints how long answers of the role query take, warm, as its clients see them.
func (d *data) askAPIs(ctx context.Context, o options, addr string) error {
	subjects := make([]subject, o.runs)
	for i := range subjects {
		var err error
		if subjects[i], err = d.subject(ctx, i, o.runs); err != nil {
			return err
		}
	}
	fmt.Print("\n| question to the role query | network | warm p50 | warm p95 |\n|---|---|---:|---:|\n")
	for _, network := range []time.Duration{0, time.Minute} {
		if err := d.askRole(ctx, subjects, addr, network); err != nil {
			return err
		}
	}
	return nil
}

// askRole asks a role query that waits so long for what the network did.
func (d *data) askRole(ctx context.Context, subjects []subject, addr string, network time.Duration) error {
	cfg, ch := role.DefaultConfig(), clickhouse.DefaultConfig()
	cfg.MaxExecutionTime, cfg.NetworkTimeout = 10*time.Minute, network
	ch.Addresses = []string{addr}
	db, err := clickhouse.OpenReader(ch, clickhouse.ReadLimits{Time: cfg.MaxExecutionTime, MemoryBytes: cfg.MaxMemoryBytes, Rows: cfg.MaxResultRows, Bytes: cfg.MaxResultBytes, AtOnce: cfg.MaxQueries}, nil)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	reader := role.NewReader(cfg, db, ch.Database, role.Options{})
	web := httptest.NewServer(tempo.NewHandler(reader))
	defer web.Close()
	services := grpc.NewServer()
	jaeger.NewService(reader).Register(services)
	port := httptest.NewUnstartedServer(nil).Listener
	defer services.Stop()
	go func() { _ = services.Serve(port) }() // until it is stopped
	conn, err := grpc.NewClient(port.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()

	get := func(ctx context.Context, path, want string) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, web.URL+path, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && (resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want)) {
			err = fmt.Errorf("%s: %s: %.300s", path, resp.Status, body)
		}
		return err
	}
	hour := func(i int) string {
		at := d.hour(i * d.hours / len(subjects))
		return fmt.Sprintf("&start=%d&end=%d&q=", at.Unix(), at.Add(time.Hour).Unix())
	}
	asks := []struct {
		name string
		of   func(ctx context.Context, i int, s subject) error
	}{
		{"a trace by Tempo's API", func(ctx context.Context, _ int, s subject) error {
			return get(ctx, "/api/traces/"+s.trace, s.trace)
		}},
		{"a trace by Jaeger's API", func(ctx context.Context, _ int, s subject) error {
			stream, err := storage.NewTraceReaderClient(conn).GetTraces(ctx, &storage.GetTracesRequest{Query: []*storage.GetTraceParams{{TraceId: idOf(s.trace)}}})
			if err != nil {
				return err
			}
			for {
				if _, err := stream.Recv(); errors.Is(err, io.EOF) {
					return nil
				} else if err != nil {
					return err
				}
			}
		}},
		{"errors of a service in an hour, by TraceQL", func(ctx context.Context, i int, s subject) error {
			return get(ctx, "/api/search?limit=20"+hour(i)+url.QueryEscape(`{ resource.service.name = "`+s.service+`" && status = error }`), "traceID")
		}},
		{"an attribute's value in an hour, by TraceQL", func(ctx context.Context, i int, s subject) error {
			return get(ctx, "/api/search?limit=20"+hour(i)+url.QueryEscape(`{ span.app.user.id = "`+s.user+`" }`), s.trace)
		}},
	}
	label := "not asked for"
	if network > 0 {
		label = "asked for"
	}
	for n, a := range asks {
		if label == "asked for" && n > 1 {
			break // searches do not ask for it
		}
		var took []time.Duration
		for i, s := range subjects {
			for warm := range 2 {
				begun := time.Now()
				if err := a.of(ctx, i, s); err != nil {
					return fmt.Errorf("%s: %w", a.name, err)
				}
				if warm == 1 {
					took = append(took, time.Since(begun))
				}
			}
		}
		fmt.Printf("| %s | %s | %s | %s |\n", a.name, label, ms(took, 50), ms(took, 95))
	}
	return nil
}

// idOf returns the bytes of a hexadecimal id; subjects have valid ones.
func idOf(text string) []byte {
	id, _ := hex.DecodeString(text)
	return id
}
