package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"net"
	"os"
	ossignal "os/signal"
	"sync"
	"syscall"
	"testing"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	_ "google.golang.org/grpc/encoding/gzip" // the WebStore's compression
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/deploy/demo/internal/process"
	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// standIn is the variable that turns this program into a stand-in for the
// MetaFlow server, with the same flags and tables but without Kafka. Its value
// selects a fault.
const standIn = "METAFLOW_DEMO_STANDIN"

// Faults of the stand-in.
const (
	faultless = "faultless"
	loses     = "loses a span"      // after acknowledging it
	doubles   = "doubles a request" // stores a request twice
	dies      = "dies"              // at start
	diesLater = "dies later"        // on the first spans
	stubborn  = "stubborn"          // exits with an error on SIGTERM
)

func TestMain(m *testing.M) {
	chengine.MaybeRunChild()
	if behaviour := os.Getenv(standIn); behaviour != "" {
		if err := pretend(behaviour, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "stand-in:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// pretend is the main function of the stand-in.
func pretend(behaviour string, args []string) error {
	ctx, stop := ossignal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if len(args) == 0 || args[0] != "standalone" {
		return fmt.Errorf("arguments %q do not begin with standalone", args)
	}
	flags := flag.NewFlagSet("standalone", flag.ContinueOnError)
	data, ready := flags.String("data-dir", "", ""), flags.String("ready-file", "", "")
	for _, name := range []string{"grpc-listen", "otlp-http-listen", "http-listen", "query-http-listen", "query-grpc-listen", "kafka-listen"} {
		flags.String(name, "", "")
	}
	flags.Int("clickhouse-native-port", 1, "")
	flags.Int("clickhouse-http-port", 1, "")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if behaviour == dies {
		return errors.New("as the test wants")
	}

	engine, err := chengine.Start(ctx, chengine.Options{DataDir: *data})
	if err != nil {
		return err
	}
	defer func() { _ = engine.Stop(context.Background()) }()
	p, err := newPretender(ctx, behaviour, engine.NativeAddr())
	if err != nil {
		return err
	}
	if err := p.serve(ctx, *ready, engine); err != nil {
		return err
	}
	if behaviour == stubborn {
		return errors.New("would rather have stayed")
	}
	return nil
}

// pretender stores each request before it answers.
type pretender struct {
	coltracepb.UnimplementedTraceServiceServer
	inserter  *clickhouse.Inserter
	behaviour string
	died      chan struct{}

	mu       sync.Mutex
	block    *columns.Spans
	requests int
}

func newPretender(ctx context.Context, behaviour, address string) (*pretender, error) {
	cfg := clickhouse.DefaultConfig()
	cfg.Addresses = []string{address}
	db, err := clickhouse.Open(cfg, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = db.Close() }()
	if err := db.Migrate(ctx, clickhouse.Retention{}); err != nil {
		return nil, err
	}
	inserter, err := clickhouse.NewInserter(cfg, clickhouse.InserterOptions{})
	return &pretender{inserter: inserter, behaviour: behaviour, block: columns.NewSpans(), died: make(chan struct{}, 1)}, err
}

func (p *pretender) serve(ctx context.Context, ready string, engine *chengine.Engine) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	content, err := json.Marshal(process.Endpoints{GRPC: l.Addr().String(), ClickHouseNative: engine.NativeAddr(), ClickHouseHTTP: engine.HTTPAddr()})
	if err != nil {
		return err
	}
	if err := os.WriteFile(ready+".new", content, 0o600); err != nil {
		return err
	}
	server := grpc.NewServer()
	coltracepb.RegisterTraceServiceServer(server, p)
	go func() { _ = server.Serve(l) }()
	defer server.Stop()
	if err := os.Rename(ready+".new", ready); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case <-p.died:
		return errors.New("the first spans were too much")
	}
}

func (p *pretender) Export(ctx context.Context, req *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests++
	if p.behaviour == diesLater {
		select {
		case p.died <- struct{}{}:
		default:
		}
	}
	if p.behaviour == loses && p.requests == 1 {
		scope := req.GetResourceSpans()[0].GetScopeSpans()[0]
		scope.Spans = scope.GetSpans()[1:]
	}
	times := 1
	if p.behaviour == doubles && p.requests == 1 {
		times = 2
	}
	return &coltracepb.ExportTraceServiceResponse{}, p.store(ctx, req, times)
}

func (p *pretender) store(ctx context.Context, req *coltracepb.ExportTraceServiceRequest, times int) error {
	value, err := proto.Marshal(req)
	if err != nil {
		return err
	}
	p.block.Reset()
	for range times {
		if _, err := p.block.Append(value, columns.Source{Window: anyTime}); err != nil {
			return err
		}
	}
	return p.inserter.Insert(ctx, 0, columns.TableSpans, fmt.Sprint(p.requests), p.block.Input(), p.block.Rows())
}

// anyTime accepts spans of any time.
var anyTime = signal.Window{Latest: math.MaxUint64}
