package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/metaflowys/metaflow-server/integration/bench/measured"
)

// metaflow measures our pipeline.
func (b *bench) metaflow(ctx context.Context) (figures, error) {
	otlp, err := measured.FreeAddr()
	if err != nil {
		return figures{}, err
	}
	ops, err := measured.FreeAddr()
	if err != nil {
		return figures{}, err
	}
	config := filepath.Join(b.dir, "metaflow.yaml")
	yaml := fmt.Sprintf(`grpc: {listen: %q}
http: {listen: %q, pprof: %t}
kafka: {brokers: [%q], partitions: %d}
clickhouse: {addresses: [%q]}
`, otlp, ops, b.profiles != "", b.kafka, b.partitions, b.engine.NativeAddr())
	if err := os.WriteFile(config, []byte(yaml), 0o600); err != nil {
		return figures{}, err
	}
	role := func(role string) func() (*measured.Process, error) {
		return func() (*measured.Process, error) {
			if b.profiles != "" {
				go b.profile(ctx, ops, role)
			}
			return measured.Start(b.verbose, nil, b.server, "serve", "--config", config, "--roles", role)
		}
	}
	if err := b.joinOnce(ctx, role("writer"), ops); err != nil {
		return figures{}, err
	}
	return b.measure(ctx, pipeline{
		name: "metaflow", otlp: otlp, receiver: role("gateway"), writer: role("writer"),
		count: "SELECT count() FROM metaflow.spans", table: "metaflow.spans_local", once: true,
	})
}

// joinOnce runs a writer on the empty topic until it has committed its
// positions, like a writer that has been in service. Without positions it would
// look up the contents of the log.
func (b *bench) joinOnce(ctx context.Context, start func() (*measured.Process, error), ops string) error {
	writer, err := start()
	if err != nil {
		return err
	}
	defer writer.Stop()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		var metrics strings.Builder
		if err := get(ctx, "http://"+ops+"/metrics", &metrics); err == nil {
			for line := range strings.Lines(metrics.String()) {
				var n float64
				if rest, ok := strings.CutPrefix(line, `metaflow_kafka_commits_total{group="metaflow-writer",outcome="accepted"} `); ok {
					if _, err := fmt.Sscan(rest, &n); err == nil && int(n) >= b.partitions {
						return nil
					}
				}
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the writer did not commit its positions: %w: %s", ctx.Err(), writer.Output.String())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// profile saves a CPU profile of a role's first seconds, and then its heap
// profile.
func (b *bench) profile(ctx context.Context, addr, role string) {
	for name, path := range map[string]string{"cpu": "profile?seconds=4", "heap": "heap?seconds=4"} {
		go func() {
			if err := save(ctx, "http://"+addr+"/debug/pprof/"+path, filepath.Join(b.profiles, role+"."+name+".pprof")); err != nil {
				measured.Progress("profile of the %s: %v", role, err)
			}
		}()
	}
}

// save fetches url into a file, as soon as it responds.
func save(ctx context.Context, url, file string) error {
	for {
		out, err := os.Create(file)
		if err != nil {
			return err
		}
		err = errors.Join(get(ctx, url, out), out.Close())
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// get writes the response of url to to.
func get(ctx context.Context, url string, to io.Writer) error {
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
