package shop

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// StartAt moves the hour. Call it before anything else.
func StartAt(start time.Time) {
	Start, End = start, start.Add(time.Hour)
	troubleFrom = End.Add(-15 * time.Minute)
}

// Load creates the tables in an engine and stores the hour.
func Load(ctx context.Context, e *chengine.Engine) error {
	cfg := clickhouse.DefaultConfig()
	cfg.Addresses = []string{e.NativeAddr()}
	db, err := clickhouse.Open(cfg, nil)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	if err := db.Migrate(ctx, clickhouse.Retention{}); err != nil {
		return err
	}
	ins, err := clickhouse.NewInserter(cfg, clickhouse.InserterOptions{})
	if err != nil {
		return err
	}
	defer ins.Close()
	hour := New()
	block := columns.NewSpans()
	for _, r := range hour.Requests() {
		value, err := proto.Marshal(r)
		if err != nil {
			return err
		}
		refused, err := block.Append(value, columns.Source{Agent: "agent", Window: signal.WindowAt(End, 24*time.Hour, time.Hour)})
		if err != nil || len(refused) > 0 {
			return fmt.Errorf("append spans: %d rejected, %w", len(refused), err)
		}
	}
	if err := ins.Insert(ctx, 0, columns.TableSpans, "spans", block.Input(), block.Rows()); err != nil {
		return err
	}
	rows := bytes.NewBufferString("INSERT INTO metaflow.flows_local FORMAT JSONEachRow ")
	for _, f := range hour.Flows() {
		if err := json.NewEncoder(rows).Encode(f); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+e.HTTPAddr()+"/", rows)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("insert flows: %s: %s: %w", resp.Status, text, err)
	}
	return nil
}
