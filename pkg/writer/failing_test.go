package writer_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/writer"
)

// An outage of ClickHouse is one line for each attempt, which counts the partitions. A failure of one partition
// names it.
func TestOutageIsOneLine(t *testing.T) {
	for name, tc := range map[string]struct {
		partitions int
		want       string
	}{
		"one partition":  {1, " partition=0 "},
		"two partitions": {2, " partitions=2 "},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newTable()
				store.broken = errors.New("dial 127.0.0.1:9000: connection refused")
				var text bytes.Buffer // written under the handler's lock, read at the end
				w, err := writer.New(config(), store.sample.of, store, store, &letters{}, writer.Options{
					AcceptPast: 24 * time.Hour, AcceptFuture: time.Hour, Logger: slog.New(slog.NewTextHandler(&text, nil)),
				})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				var running sync.WaitGroup
				for n := range tc.partitions {
					log := newLog()
					log.number = n
					log.append(time.Now(), request(time.Now(), n), false)
					running.Go(func() { _ = w.Handle(ctx, log) })
				}
				<-time.After(20 * time.Second)
				store.mu.Lock()
				store.broken = nil
				store.mu.Unlock()
				<-time.After(20 * time.Second)
				cancel()
				running.Wait()
				lines := 0
				for line := range strings.Lines(text.String()) {
					if !strings.Contains(line, "retrying after a failure") {
						continue
					}
					if lines++; !strings.Contains(line, tc.want) || !strings.Contains(line, "connection refused") {
						t.Errorf("want %q in %s", tc.want, line)
					}
				}
				// The pauses are 0.1, 0.2, 0.4 ... 5 s.
				if lines == 0 || lines > 10 {
					t.Errorf("%d lines in 20 s:\n%s", lines, text.String())
				}
				if len(store.spans) != tc.partitions {
					t.Errorf("%d spans stored", len(store.spans))
				}
			})
		})
	}
}
