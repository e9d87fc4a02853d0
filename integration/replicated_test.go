package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
)

// A server stores each acknowledged span once in a replicated cluster, while all of its nodes
// but the first are killed and start again, one after the other. docs/clickhouse-cluster.md has the variables that name the
// cluster and the commands.
func TestReplicatedCluster(t *testing.T) {
	const variable = "METAFLOW_TEST_CLICKHOUSE_"
	addresses := os.Getenv(variable + "CLUSTER")
	if addresses == "" {
		t.Skip(variable + "CLUSTER names no replicated ClickHouse cluster")
	}
	name := os.Getenv(variable + "CLUSTER_NAME")
	if name == "" {
		name = "metaflow"
	}
	user := os.Getenv(variable + "USER")
	if user == "" {
		user = "default"
	}
	const database = "metaflow_test_replicated"
	nodes := strings.Split(addresses, ",")
	s := &site{t: t, dir: t.TempDir(), kafkaAddr: ports.FreeAddress(t), grpc: ports.FreeAddress(t)}
	s.startKafka()
	t.Cleanup(s.stopKafka)
	s.config = filepath.Join(s.dir, "metaflow.yaml")
	yaml := fmt.Sprintf(`grpc: {listen: %q, retry_delay: 200ms}
kafka: {brokers: [%q], partitions: 6, produce_timeout: 3s}
clickhouse: {addresses: [%s], cluster: %q, database: %s, username: %q, password: %q, query_timeout: 10s}
writer: {max_batch_wait: 200ms, session_timeout: 6s}
flow_writer: {max_batch_wait: 200ms, session_timeout: 6s}
log: {format: text}
`, s.grpc, s.kafkaAddr, `"`+strings.Join(nodes, `", "`)+`"`, name, database, user, os.Getenv(variable+"PASSWORD"))
	if err := os.WriteFile(s.config, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	login := clickhouse.Auth{Username: user, Password: os.Getenv(variable + "PASSWORD")}
	conn, err := clickhouse.Open(&clickhouse.Options{Addr: nodes[:1], Auth: login})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	drop := func() {
		if err := conn.Exec(context.Background(), "DROP DATABASE IF EXISTS "+database+" ON CLUSTER '"+name+"' SYNC"); err != nil {
			t.Error(err)
		}
	}
	drop() // of a run that was killed
	t.Cleanup(drop)

	server, addr := s.serve("gateway,writer")
	t.Cleanup(func() { server.terminate() })
	ready(server, addr)
	c := newClient(t, s.grpc, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	killed := make(chan struct{})
	var sending sync.WaitGroup
	sending.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-killed:
				if n >= 100 {
					return
				}
			case <-time.After(20 * time.Millisecond):
			}
			c.send(ctx, 40)
		}
	})
	if os.Getenv(variable+"STOP") != "" {
		for i, address := range nodes[1:] {
			node(t, variable+"STOP", i+2)
			node(t, variable+"START", i+2)
			server.eventually(2*time.Minute, func() error {
				back, err := clickhouse.Open(&clickhouse.Options{Addr: []string{address}, Auth: login})
				if err != nil {
					return err
				}
				defer func() { _ = back.Close() }()
				return back.Ping(ctx)
			})
		}
	}
	close(killed)
	sending.Wait()
	t.Logf("%d spans acknowledged, %d requests sent more than once", c.sent, c.again)
	server.eventually(2*time.Minute, func() error {
		var rows, distinct uint64
		err := conn.QueryRow(ctx, "SELECT count(), uniqExact(trace_id, span_id) FROM "+database+".spans").Scan(&rows, &distinct)
		if err == nil && (rows != uint64(c.sent) || distinct != rows) {
			err = fmt.Errorf("%d rows, %d distinct, want %d", rows, distinct, c.sent)
		}
		return err
	})
}

// node runs the command of a variable for the node with a number.
func node(t *testing.T, variable string, number int) {
	t.Helper()
	cmd := exec.Command("sh", "-c", os.Getenv(variable))
	cmd.Env = append(os.Environ(), fmt.Sprintf("NODE=%d", number))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", variable, err, out)
	}
}
