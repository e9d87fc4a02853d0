package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/embedded/broker"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chdoor"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// defaultOTLPHTTP is the default endpoint of SDKs.
const defaultOTLPHTTP = "127.0.0.1:4318"

// standalone holds the command's own flags.
type standalone struct {
	dataDir              string
	kafkaListen          string
	nativePort, httpPort int
	readyFile            string
	encrypted            bool // the page
}

// addresses are the listen addresses, as written to --ready-file.
type addresses struct {
	GRPC             string `json:"grpc"`
	OTLPHTTP         string `json:"otlp_http,omitempty"` // empty if another program has its port
	HTTP             string `json:"http"`
	QueryHTTP        string `json:"query_http"`
	QueryGRPC        string `json:"query_grpc"`
	Kafka            string `json:"kafka"`
	ClickHouseNative string `json:"clickhouse_native"`
	ClickHouseHTTP   string `json:"clickhouse_http"`
}

func newStandalone() *cobra.Command {
	var o standalone
	cmd := &cobra.Command{
		Use:   "standalone",
		Short: "Serve with an embedded Kafka and an embedded ClickHouse",
		Long: `standalone runs everything in one place: all roles, over a Kafka broker inside
this process and a ClickHouse in a child process. Use it for trials, development
and small hosts; its data survives restarts and kill -9. Kafka syncs every write
to disk before it acknowledges. A ClickHouse that ends is restarted, and the log
has the reason; its own log, with the stack traces of failed queries, is the file
clickhouse.log in the data directory. Everything listens on loopback by default. Port 0 picks a free
port. If the default OTLP/HTTP port is in use, standalone runs without OTLP/HTTP.`,
		Args: program.Args(cobra.NoArgs),
	}
	cmd.Flags().StringVar(&o.dataDir, "data-dir", "", "data `directory` of Kafka and ClickHouse; created if missing (required)")
	cmd.Flags().StringVar(&o.kafkaListen, "kafka-listen", "127.0.0.1:9092", "`host:port` of the embedded Kafka")
	cmd.Flags().IntVar(&o.nativePort, "clickhouse-native-port", 9000, "`port` of the embedded ClickHouse's native protocol on loopback")
	cmd.Flags().IntVar(&o.httpPort, "clickhouse-http-port", 8123, "`port` of the embedded ClickHouse's HTTP interface on loopback")
	cmd.Flags().StringVar(&o.readyFile, "ready-file", "", "write the listen addresses to this `file`, as JSON, once everything listens")
	flags := configured.AddFlags(cmd, map[string]string{
		"grpc-listen": "grpc.listen", "http-listen": "http.listen", "otlp-http-listen": "gateway.http_listen",
		"query-http-listen": "query.http_listen", "query-grpc-listen": "query.grpc_listen",
	})
	cmd.Flags().Lookup("grpc-listen").DefValue = "127.0.0.1:20035"
	cmd.Flags().Lookup("http-listen").DefValue = "127.0.0.1:20417"
	cmd.Flags().Lookup("otlp-http-listen").DefValue = defaultOTLPHTTP
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if o.dataDir == "" {
			return program.Usage("--data-dir is required")
		}
		cfg := defaultServer()
		cfg.GRPC.Listen, cfg.HTTP.Listen = "127.0.0.1:20035", "127.0.0.1:20417"
		cfg.Gateway.HTTPListen = defaultOTLPHTTP
		cfg.GRPC.Reflection = true // harmless on loopback
		cfg.Log.Format, cfg.Log.Level = "text", "warn"
		// Compression on one machine only costs CPU.
		cfg.ClickHouse.Compression = "none"
		err := flags.LoadOver(cfg)
		if err != nil {
			return err
		}
		if twice := shared(append(cfg.listens(), o.listens()...)); len(twice) > 0 {
			return program.Usage("%w", errors.Join(twice...))
		}
		err = o.run(cmd.Context(), cfg, cfg.Log.Logger(cmd.ErrOrStderr()), cmd.OutOrStdout())
		return explainTaken(append(cfg.listens(), o.listens()...), err)
	}
	return cmd
}

// listens returns the addresses of the engines.
func (o *standalone) listens() []listen {
	loopback := func(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
	return []listen{
		{"--kafka-listen", o.kafkaListen},
		{"--clickhouse-native-port", loopback(o.nativePort)},
		{"--clickhouse-http-port", loopback(o.httpPort)},
	}
}

// run starts the engines, then the server on top of them, and stops them in reverse
// order.
func (o *standalone) run(ctx context.Context, cfg *server, log *slog.Logger, out io.Writer) (err error) {
	if err := os.MkdirAll(o.dataDir, 0o750); err != nil {
		return fmt.Errorf("create data directory: %w", err)
	}
	engineOptions := chengine.Options{
		DataDir: filepath.Join(o.dataDir, "clickhouse"), Logger: log,
		LogFile: filepath.Join(o.dataDir, engineLog),
	}
	engine, err := chengine.StartPersistently(ctx, engineOptions)
	switch {
	case ctx.Err() != nil && errors.Is(err, ctx.Err()): // interrupted before it was ready
		return nil
	case err != nil:
		return err
	}
	keeping, stopEngine := context.WithCancel(context.WithoutCancel(ctx))
	engineEnded := make(chan error, 1)
	go func() { engineEnded <- chengine.Keep(keeping, engine, engineOptions) }()
	defer func() {
		stopEngine()
		err = errors.Join(err, <-engineEnded)
	}()
	native, err := chdoor.Open(o.nativePort, engine.NativeAddr(), log)
	if err != nil {
		return fmt.Errorf("--clickhouse-native-port: %w", err)
	}
	var doors sync.WaitGroup
	doors.Go(func() { native.Run(keeping) })
	defer func() { stopEngine(); doors.Wait() }()
	door, err := openEngineDoor(o.httpPort, engine.HTTPAddr())
	if err != nil {
		return fmt.Errorf("--clickhouse-http-port: %w", err)
	}
	doors.Go(func() { door.run(keeping) })
	kafka, err := broker.Start(broker.Options{Listen: o.kafkaListen, DataDir: filepath.Join(o.dataDir, "kafka"), SyncWrites: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kafka.Close()) }()

	cfg.Roles = slices.Clone(allRoles)
	cfg.Kafka.Brokers = []string{kafka.Addr()}
	cfg.Kafka.Replication, cfg.Kafka.MinInSync = 1, 1
	cfg.ClickHouse.Addresses = []string{engine.NativeAddr()}
	cfg.ClickHouse.Cluster = ""
	cfg.Query.Username, cfg.Query.Password = "", "" // the embedded engine has one user
	o.encrypted = cfg.Query.TLS.CertFile != ""
	a, err := newApp(cfg, log)
	if err != nil {
		return err
	}
	a.single = true
	a.spareHTTP = defaultOTLPHTTP
	listening := make(chan [2]net.Addr, 1)
	a.listening = func(grpc, otlpHTTP net.Addr) { listening <- [2]net.Addr{grpc, otlpHTTP} }
	g, ctx := errgroup.WithContext(ctx)
	ctx, stop := context.WithCancel(ctx)
	g.Go(func() error {
		defer stop()
		return a.run(ctx)
	})
	g.Go(func() error {
		at := addresses{
			HTTP: a.http.Addr().String(), QueryHTTP: a.asked.http.Addr().String(), QueryGRPC: a.asked.grpc.Addr().String(), Kafka: kafka.Addr(),
			ClickHouseNative: native.Addr(), ClickHouseHTTP: door.addr(),
		}
		select {
		case addrs := <-listening:
			at.GRPC = addrs[0].String()
			if addrs[1] != nil {
				at.OTLPHTTP = addrs[1].String()
			}
		case <-ctx.Done():
			return nil
		}
		if !becomesReady(ctx, a.ready) {
			return nil
		}
		return o.announce(at, out)
	})
	return g.Wait()
}

// engineLog is the file in the data directory with ClickHouse's own log.
const engineLog = "clickhouse.log"

// chosenBy tells, for the key or flag of each address, the flag and the variable of
// `make run` that choose it.
var chosenBy = map[string][2]string{
	"grpc.listen":              {"--grpc-listen", "GRPC"},
	"http.listen":              {"--http-listen", "HTTP"},
	"gateway.http_listen":      {"--otlp-http-listen", "OTLP_HTTP"},
	"query.http_listen":        {"--query-http-listen", "QUERY_HTTP"},
	"query.grpc_listen":        {"--query-grpc-listen", "QUERY_GRPC"},
	"--kafka-listen":           {"--kafka-listen", "KAFKA"},
	"--clickhouse-native-port": {"--clickhouse-native-port", "CLICKHOUSE"},
	"--clickhouse-http-port":   {"--clickhouse-http-port", "CLICKHOUSE_HTTP"},
}

// explainTaken returns an error that says how to choose another port, if err is that one
// of the addresses is in use. Otherwise it returns err.
func explainTaken(all []listen, err error) error {
	var op *net.OpError
	if !errors.Is(err, syscall.EADDRINUSE) || !errors.As(err, &op) || op.Addr == nil {
		return err
	}
	for _, l := range all {
		if by, ok := chosenBy[l.key]; ok && samePort(l.address, op.Addr.String()) {
			return fmt.Errorf("%s: another program uses the port %s; choose another one (with make run: %s=...)", by[0], l.address, by[1])
		}
	}
	return err
}

// becomesReady waits until check succeeds. It returns false if ctx ends first.
func becomesReady(ctx context.Context, check func(context.Context) error) bool {
	const interval = 50 * time.Millisecond
	return retry.Do(ctx, retry.Policy{First: interval, Max: interval}, check, nil) == nil
}

// announce prints the listen addresses and writes the ready file.
func (o *standalone) announce(at addresses, out io.Writer) error {
	scheme := "http"
	if o.encrypted {
		scheme = "https"
	}
	fmt.Fprintf(out, `MetaFlow is ready.
  page               %s://%s/ui/   (services, traces and what the network did to them)
  OTLP/gRPC          %s   (point an OTLP exporter here)
  OTLP/HTTP          %s
  HTTP               %s   (/ready, /metrics; for metaflow-ctl)
  Tempo API, MCP     %s   (Grafana's Tempo data source; /mcp)
  Jaeger storage     %s   (gRPC remote storage of a Jaeger)
  Kafka              %s
  ClickHouse native  %s
  ClickHouse HTTP    %s
  data               %s   (ClickHouse's own log is %s there)

Queries in a browser: http://%s/play
Try:  curl -s http://%s/ --data-binary \
  "SELECT service_name, name, count() AS spans, round(quantile(0.99)(duration_ns) / 1e6, 2) AS p99_ms FROM metaflow.spans GROUP BY ALL ORDER BY spans DESC LIMIT 10 FORMAT PrettyCompact"
Stop with Ctrl-C.
`, scheme, at.QueryHTTP, at.GRPC, cmp.Or(at.OTLPHTTP, "none"), at.HTTP, at.QueryHTTP, at.QueryGRPC, at.Kafka, at.ClickHouseNative, at.ClickHouseHTTP, o.dataDir, engineLog, at.ClickHouseHTTP, at.ClickHouseHTTP)
	if o.readyFile == "" {
		return nil
	}
	if err := writeReadyFile(o.readyFile, at); err != nil {
		return fmt.Errorf("write ready file: %w", err)
	}
	return nil
}

// writeReadyFile writes the addresses atomically, so that a reader never sees half a
// file.
func writeReadyFile(name string, at addresses) error {
	text, err := json.Marshal(at)
	if err != nil {
		return err
	}
	temporary := name + "." + strconv.Itoa(os.Getpid())
	if err := os.WriteFile(temporary, append(text, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, name)
}
