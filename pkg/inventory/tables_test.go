package inventory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// store is a minimal ClickHouse of two shards.
type store struct {
	mu     sync.Mutex
	err    error
	tokens map[string]bool
	rows   map[string][]string // by shard and table: the values of the first name column
}

func newStore() *store {
	return &store{tokens: map[string]bool{}, rows: map[string][]string{}}
}

func (s *store) Discover(context.Context) error { return nil }
func (s *store) Shards() int                    { return 2 }

func (s *store) Insert(_ context.Context, shard int, table, token string, input proto.Input, rows int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	key := fmt.Sprintf("%d/%s", shard, table)
	if s.tokens[key+token] {
		return nil
	}
	s.tokens[key+token] = true
	for _, c := range input {
		if names, ok := c.Data.(*proto.ColStr); ok && slices.Contains([]string{"uid", "service", "agent_id"}, c.Name) {
			for i := range rows {
				s.rows[key] = append(s.rows[key], names.Row(i))
			}
		}
	}
	return nil
}

func (s *store) set(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *store) has(table string, names ...string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for shard := range 2 {
		for _, name := range names {
			if !slices.Contains(s.rows[fmt.Sprintf("%d/%s", shard, table)], name) {
				return false
			}
		}
	}
	return true
}

func (s *store) count(table string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, names := range s.rows {
		if strings.HasSuffix(key, table) {
			n += len(names)
		}
	}
	return n
}

// One of two replicas writes the tables, in both shards; when it stops the other
// continues. While ClickHouse is away nothing is lost.
func TestTablesAreWrittenByOne(t *testing.T) {
	w := newWorld(t)
	one := w.replica("one", nil)
	st := newStore()
	writer := func(name string) (stop func()) {
		client, log := w.client(name)
		tables, err := NewTables(st, TablesOptions{Logger: log, Gather: 50 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		group := client.NewGroup(DefaultConfig().Group, schema.TopicResources, kafka.GroupOptions{})
		return w.run(func(ctx context.Context) error { return group.Run(ctx, tables.Handle) })
	}
	stop := writer("first")
	report(t, one, w.complete("n1", w.pod("a", "10.0.0.1")))
	wait.Until(t, "the pod is in both shards", func() bool { return st.has("pods_local", "a") })
	st.set(errors.New("clickhouse is away"))
	request := w.complete("n1", w.pod("a", "10.0.0.1"), w.pod("b", "10.0.0.2"))
	request.Services = []*agentv1.Service{{Namespace: "shop", Name: "cart", Addresses: [][]byte{{10, 96, 0, 1}}}}
	report(t, one, request)
	if err := one.opts.Producer.Produce(t.Context(), []kafka.Outgoing{{Key: []byte("agent/gone")}, {Key: []byte("pod/prod/x"), Value: []byte{0xff}}}); err != nil {
		t.Fatal(err)
	}
	st.set(nil)
	wait.Until(t, "all is there", func() bool {
		return st.has("pods_local", "b") && st.has("services_local", "cart") && st.has("agents_local", "gone")
	})
	stop()
	before := st.count("pods_local")
	writer("second")
	report(t, one, w.complete("n2", w.pod("c", "10.0.0.3")))
	wait.Until(t, "the other one writes", func() bool { return st.has("pods_local", "c") })
	if n := st.count("pods_local"); n != before+2 {
		t.Errorf("%d rows were written again", n-before-2)
	}
}
