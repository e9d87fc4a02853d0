package main

import (
	"github.com/spf13/cobra"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
)

func newServe() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve with Kafka and ClickHouse elsewhere",
		Long: `serve runs the roles of this process until SIGTERM: gateway (OTLP to Kafka),
writer (Kafka to ClickHouse), control (agents and their configuration), query (traces for Grafana, Jaeger, MCP
and the page /ui). It waits for
Kafka and ClickHouse if they are not up yet; /ready shows what it waits for.`,
		Args: program.Args(cobra.NoArgs),
	}
	flags := configured.AddFlags(cmd, map[string]string{
		"roles":                "roles",
		"grpc-listen":          "grpc.listen",
		"http-listen":          "http.listen",
		"otlp-http-listen":     "gateway.http_listen",
		"query-http-listen":    "query.http_listen",
		"query-grpc-listen":    "query.grpc_listen",
		"kafka-brokers":        "kafka.brokers",
		"clickhouse-addresses": "clickhouse.addresses",
		"clickhouse-cluster":   "clickhouse.cluster",
	})
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := flags.Load()
		if err != nil {
			return err
		}
		a, err := newApp(cfg, cfg.Log.Logger(cmd.ErrOrStderr()))
		if err != nil {
			return err
		}
		return a.run(cmd.Context())
	}
	return cmd
}
