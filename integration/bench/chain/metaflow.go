package chain

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/metaflowys/metaflow-server/integration/bench/measured"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
)

// MetaFlow returns the chain of our server's program.
func (s *Site) MetaFlow(server string, pprof bool) (Chain, error) {
	otlp, err := measured.FreeAddr()
	if err != nil {
		return Chain{}, err
	}
	config := filepath.Join(s.Dir, "metaflow.yaml")
	yaml := fmt.Sprintf(`grpc: {listen: %q}
http: {pprof: %t}
kafka: {brokers: [%q], partitions: %d}
clickhouse: {addresses: [%q]}
`, otlp, pprof, s.Kafka, s.Partitions, s.ClickHouse.NativeAddr())
	if err := os.WriteFile(config, []byte(yaml), 0o600); err != nil {
		return Chain{}, err
	}
	role := func(role string) Start {
		return func(ops string) (*measured.Process, error) {
			return measured.Start(s.Verbose, nil, server, "serve", "--config", config, "--roles", role, "--http-listen", ops)
		}
	}
	return Chain{
		Name: "metaflow", OTLP: otlp, Receiver: role("gateway"), Writer: role("writer"), Table: "metaflow.spans_local", Once: true,
	}, nil
}

// JoinOnce runs a writer on the empty topic until it has committed its
// positions, like a writer that has been in service. Without positions it would
// look up the contents of the log.
func (s *Site) JoinOnce(ctx context.Context, c Chain) error {
	ops, err := measured.FreeAddr()
	if err != nil {
		return err
	}
	writer, err := c.Writer(ops)
	if err != nil {
		return err
	}
	defer writer.Stop()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		var metrics strings.Builder
		if err := Get(ctx, "http://"+ops+"/metrics", &metrics); err == nil {
			n, err := prom.Sum(metrics.String(), "metaflow_kafka_commits_total", `{group="metaflow-writer",outcome="accepted"}`)
			if err == nil && int(n) >= s.Partitions {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the writer did not commit its positions: %w: %s", ctx.Err(), writer.Output.String())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Get writes the response of url to a writer.
func Get(ctx context.Context, url string, to io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(to, resp.Body)
	return err
}
