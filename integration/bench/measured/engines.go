package measured

import (
	"context"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/metaflowys/metaflow-server/pkg/embedded/broker"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
)

// brokerVariable turns this program into the broker.
const brokerVariable = "BENCH_BROKER"

// MaybeRunEngine runs an engine if StartBroker or StartClickHouse started this
// process as one. Call it first in main.
func MaybeRunEngine() {
	chengine.MaybeRunChild()
	MaybeServe(brokerVariable, func(addr string) error {
		if _, err := broker.Start(broker.Options{Listen: addr}); err != nil {
			return err
		}
		select {}
	})
}

// StartBroker starts the embedded Kafka in its own process and returns its
// address.
func StartBroker(ctx context.Context, verbose bool) (*Process, string, error) {
	return StartServing(ctx, verbose, brokerVariable)
}

// ClickHouse is an engine in its own process, and a connection to it.
type ClickHouse struct {
	*chengine.Engine
	Conn driver.Conn
}

// StartClickHouse starts an engine; settings are the query settings of the
// connection. Close stops it.
func StartClickHouse(ctx context.Context, o chengine.Options, settings clickhouse.Settings) (*ClickHouse, error) {
	engine, err := chengine.Start(ctx, o)
	if err != nil {
		return nil, err
	}
	c := &ClickHouse{Engine: engine}
	c.Conn, err = clickhouse.Open(&clickhouse.Options{
		Addr: []string{engine.NativeAddr()}, ReadTimeout: 10 * time.Minute, Settings: settings,
	})
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Close closes the connection and stops the engine.
func (c *ClickHouse) Close() {
	if c.Conn != nil {
		_ = c.Conn.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_ = c.Stop(ctx)
}

// WaitMerged waits until no merge has run for two seconds.
func (c *ClickHouse) WaitMerged(ctx context.Context) error {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for quiet := 0; quiet < 8; quiet++ {
		var n uint64
		if err := c.Conn.QueryRow(ctx, "SELECT count() FROM system.merges").Scan(&n); err != nil {
			return err
		}
		if n > 0 {
			quiet = 0
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}
