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

	"github.com/chromedp/chromedp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/metaflowys/metaflow-server/integration/internal/chromium"
	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	role "github.com/metaflowys/metaflow-server/pkg/query"
	"github.com/metaflowys/metaflow-server/pkg/query/jaeger"
	"github.com/metaflowys/metaflow-server/pkg/query/tempo"
	"github.com/metaflowys/metaflow-server/pkg/query/ui"
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
	return showPage(subjects, addr)
}

// openRole returns the reader of a role query that waits so long for what the network did.
func openRole(addr string, network time.Duration) (reader *role.Reader, closeAll func(), err error) {
	cfg, ch := role.DefaultConfig(), clickhouse.DefaultConfig()
	cfg.MaxExecutionTime, cfg.NetworkTimeout = 10*time.Minute, network
	ch.Addresses = []string{addr}
	db, err := clickhouse.OpenReader(ch, clickhouse.ReadLimits{Time: cfg.MaxExecutionTime, MemoryBytes: cfg.MaxMemoryBytes, Rows: cfg.MaxResultRows, Bytes: cfg.MaxResultBytes, AtOnce: cfg.MaxQueries}, nil)
	if err != nil {
		return nil, nil, err
	}
	return role.NewReader(cfg, db, ch.Database, role.Options{}), func() { _ = db.Close() }, nil
}

// showPage prints how long a browser takes until the page shows something, and until it shows
// the trace that was asked for. Each time the browser is a new one.
func showPage(subjects []subject, addr string) error {
	reader, closeAll, err := openRole(addr, time.Minute)
	if err != nil {
		return err
	}
	defer closeAll()
	web := httptest.NewServer(ui.NewHandler(reader, ui.Options{Guard: func(h http.Handler) http.Handler { return h }}))
	defer web.Close()
	var painted, complete []time.Duration
	for _, s := range subjects {
		page, stop, err := chromium.Start(time.Minute)
		if errors.Is(err, chromium.ErrMissing) {
			fmt.Printf("| the page's first paint | %v | | |\n", err)
			return nil
		}
		if err != nil {
			return err
		}
		// The browser starts with the first action.
		err = chromedp.Run(page)
		begun := time.Now()
		if err == nil {
			err = chromedp.Run(page, chromedp.Navigate(web.URL+"/ui/#/trace/"+s.trace), chromedp.WaitVisible(".waterfall .row", chromedp.ByQuery))
		}
		complete = append(complete, time.Since(begun))
		if err == nil {
			var paint time.Duration
			paint, err = chromium.FirstPaint(page)
			painted = append(painted, paint)
		}
		if err := errors.Join(err, stop()); err != nil {
			return fmt.Errorf("show a trace: %w", err)
		}
	}
	fmt.Printf("| the page's first paint | | %s | %s |\n", ms(painted, 50), ms(painted, 95))
	fmt.Printf("| the page with a trace | asked for | %s | %s |\n", ms(complete, 50), ms(complete, 95))
	return nil
}

// askRole asks a role query that waits so long for what the network did.
func (d *data) askRole(ctx context.Context, subjects []subject, addr string, network time.Duration) error {
	reader, closeAll, err := openRole(addr, network)
	if err != nil {
		return err
	}
	defer closeAll()
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
	received := func(stream grpc.ServerStreamingClient[storage.TracesData], err error) error {
		for err == nil {
			_, err = stream.Recv()
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
	jaegers := storage.NewTraceReaderClient(conn)
	without, with := network == 0, network > 0
	asks := []struct {
		name string
		ask  bool // searches for spans do not look at the network, and those for a verdict always do
		of   func(ctx context.Context, i int, s subject) error
	}{
		{"a trace by Tempo's API", true, func(ctx context.Context, _ int, s subject) error {
			return get(ctx, "/api/traces/"+s.trace, s.trace)
		}},
		{"a trace by Jaeger's API", true, func(ctx context.Context, _ int, s subject) error {
			return received(jaegers.GetTraces(ctx, &storage.GetTracesRequest{Query: []*storage.GetTraceParams{{TraceId: idOf(s.trace)}}}))
		}},
		{"20 traces of a service in an hour, by Jaeger's API", true, func(ctx context.Context, i int, s subject) error {
			at := d.hour(i * d.hours / len(subjects))
			return received(jaegers.FindTraces(ctx, &storage.FindTracesRequest{Query: &storage.TraceQueryParameters{
				ServiceName: s.service, SearchDepth: 20, StartTimeMin: timestamppb.New(at), StartTimeMax: timestamppb.New(at.Add(time.Hour)),
			}}))
		}},
		{"20 traces with retransmissions in an hour, by TraceQL", with, func(ctx context.Context, i int, _ subject) error {
			return get(ctx, "/api/search?limit=20"+hour(i)+url.QueryEscape(`{ network.verdict = "retransmission" }`), "traceID")
		}},
		{"a verdict that no call in an hour has, by TraceQL", with, func(ctx context.Context, i int, _ subject) error {
			return get(ctx, "/api/search?limit=20"+hour(i)+url.QueryEscape(`{ network.verdict = "slow DNS" }`), "inspectedTraces")
		}},
		{"errors of a service in an hour, by TraceQL", without, func(ctx context.Context, i int, s subject) error {
			return get(ctx, "/api/search?limit=20"+hour(i)+url.QueryEscape(`{ resource.service.name = "`+s.service+`" && status = error }`), "traceID")
		}},
		{"an attribute's value in an hour, by TraceQL", without, func(ctx context.Context, i int, s subject) error {
			return get(ctx, "/api/search?limit=20"+hour(i)+url.QueryEscape(`{ span.app.user.id = "`+s.user+`" }`), s.trace)
		}},
	}
	label := "not asked for"
	if with {
		label = "asked for"
	}
	for _, a := range asks {
		if !a.ask {
			continue
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
