package inventory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	protobuf "google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

const (
	// gatherFor is how long records are gathered for one insert, and gatherAtMost the
	// maximum number of keys. Agents report every ten seconds, and one row each is
	// enough.
	gatherFor    = 10 * time.Second
	gatherAtMost = 10_000
	tableFetch   = 1 << 20
	// commitTimeout bounds the last commit during a shutdown.
	commitTimeout = 5 * time.Second
)

var backoff = retry.Policy{First: 500 * time.Millisecond, Max: 15 * time.Second, Lasting: time.Minute}

// Inserter stores blocks. clickhouse.Inserter implements it.
type Inserter interface {
	Discover(ctx context.Context) error
	Shards() int
	Insert(ctx context.Context, shard int, table, token string, input proto.Input, rows int) error
}

// TablesOptions are set by code. The zero value is usable.
type TablesOptions struct {
	Logger     *slog.Logger          // nil discards
	Registerer prometheus.Registerer // nil does not register the metrics
	// Gather is how long records are gathered for one insert. 0 means ten seconds.
	Gather time.Duration
}

// Tables writes the topic's records into the tables pods, services and agents. Its
// handler belongs to a consumer group, so one replica writes at a time. Rows replace
// older ones with the same key, so writing them again does no harm. Each row goes to
// every shard, because queries may read any of them.
type Tables struct {
	to         Inserter
	log        *slog.Logger
	gather     time.Duration
	unreadable prometheus.Counter
}

// NewTables returns a Tables. It starts nothing.
func NewTables(to Inserter, opts TablesOptions) (*Tables, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Gather <= 0 {
		opts.Gather = gatherFor
	}
	t := &Tables{to: to, log: opts.Logger, gather: opts.Gather, unreadable: promauto.With(opts.Registerer).NewCounter(prometheus.CounterOpts{
		Name: "metaflow_resources_rows_unreadable_total",
		Help: "Malformed records that are missing from the tables pods, services and agents.",
	})}
	return t, nil
}

// row is the last record of a key.
type row struct {
	value []byte // nil for a tombstone
	at    time.Time
}

// Handle is a kafka.Handler. It logs and retries errors.
func (t *Tables) Handle(ctx context.Context, c *kafka.Claim) error {
	_ = retry.Do(ctx, backoff, func(ctx context.Context) error {
		err := t.follow(ctx, c)
		if ctx.Err() == nil && (fault.ClassOf(err) == fault.Fenced || errors.Is(err, kafka.ErrTopicChanged)) {
			t.log.Warn("giving up the resources topic for reassignment", slog.Any("error", err))
			return nil
		}
		return err
	}, func(f retry.Failure) {
		if f.Count == 1 {
			t.log.Warn("cannot write the tables pods, services and agents, retrying", slog.Any("error", f.Err))
		}
	})
	return nil // after a stop, uncommitted records are read again
}

// follow writes from the group's position until ctx ends or an error occurs.
func (t *Tables) follow(ctx context.Context, c *kafka.Claim) error {
	if err := t.to.Discover(ctx); err != nil {
		return err
	}
	at, err := t.begin(ctx, c)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		rows, next, err := t.read(ctx, c, at)
		if errors.Is(err, kafka.ErrTruncated) {
			t.log.Error("the resources topic has lost records, reading it from its beginning", slog.Any("error", err))
			at, err = t.first(ctx, c)
			if err == nil {
				continue
			}
		}
		if err != nil {
			return err
		}
		if next.Offset == at.Offset {
			continue
		}
		if err := t.store(ctx, rows, at.Offset, next.Offset); err != nil {
			return err
		}
		if err := t.commit(ctx, c, next); err != nil {
			return err
		}
		at = next
	}
	return nil
}

func (t *Tables) commit(ctx context.Context, c *kafka.Claim, next kafka.Position) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	return c.CommitPosition(ctx, next)
}

// begin returns the position to continue at.
func (t *Tables) begin(ctx context.Context, c *kafka.Claim) (kafka.Position, error) {
	start, end, err := c.Bounds(ctx)
	if err != nil {
		return kafka.Position{}, err
	}
	committed, err := c.Position(ctx)
	if err != nil {
		return kafka.Position{}, err
	}
	if committed.Offset < start || committed.Offset > end {
		return t.first(ctx, c) // the first time, or the log has lost its end
	}
	return kafka.Position{Offset: committed.Offset, LeaderEpoch: committed.LeaderEpoch}, nil
}

// first returns the beginning of the log, without a leader epoch.
func (t *Tables) first(ctx context.Context, c *kafka.Claim) (kafka.Position, error) {
	start, _, err := c.Bounds(ctx)
	at := kafka.Position{Offset: start, LeaderEpoch: -1}
	c.Seek(at)
	return at, err
}

// read gathers records from a position on, once there are any. The last record of each
// key counts.
func (t *Tables) read(ctx context.Context, c *kafka.Claim, from kafka.Position) (rows map[string]row, next kafka.Position, err error) {
	rows, next = map[string]row{}, from
	var until <-chan time.Time
	for len(rows) < gatherAtMost {
		batch, err := c.Fetch(ctx, next.Offset, tableFetch, min(t.gather, 2*time.Second))
		var corrupt *kafka.CorruptError
		switch {
		case errors.As(err, &corrupt):
			t.skip(corrupt.Offset, corrupt.Cause)
			batch.Next, batch.LeaderEpoch = corrupt.Next, -1
		case err != nil:
			return nil, from, err
		}
		for _, r := range batch.Records {
			rows[string(r.Key)] = row{bytes.Clone(r.Value), r.Time}
		}
		if batch.Next > next.Offset {
			next.Offset, next.LeaderEpoch = batch.Next, batch.LeaderEpoch
		}
		if until == nil && next.Offset > from.Offset {
			timer := time.NewTimer(t.gather)
			defer timer.Stop()
			until = timer.C
		}
		select {
		case <-until:
			return rows, next, nil
		case <-ctx.Done():
			return nil, from, ctx.Err()
		default:
		}
		if next.Offset == from.Offset {
			return rows, next, nil
		}
	}
	return rows, next, nil
}

func (t *Tables) skip(offset int64, cause error) {
	t.unreadable.Inc()
	t.log.Error("cannot read record, omitting it from the tables",
		slog.String("topic", schema.TopicResources), slog.Int64("offset", offset), slog.Any("error", cause))
}

// block is the rows to insert into one table.
type block interface {
	Rows() int
	Input() proto.Input
}

// store inserts the rows into every shard. The token differs from that of every other
// insert, even if the topic was deleted and recreated.
func (t *Tables) store(ctx context.Context, rows map[string]row, from, next int64) error {
	pods, services, agents := columns.NewPods(), columns.NewServices(), columns.NewAgents()
	var newest time.Time
	for key, r := range rows {
		if r.at.After(newest) {
			newest = r.at
		}
		if err := appendRow(pods, services, agents, key, r); err != nil {
			t.skip(next-1, fmt.Errorf("%.100q: %w", key, err))
		}
	}
	token := schema.TopicResources + "/" + strconv.FormatInt(from, 10) + "-" + strconv.FormatInt(next, 10) + "@" + strconv.FormatInt(newest.UnixMilli(), 10)
	for table, b := range map[string]block{columns.TablePods: pods, columns.TableServices: services, columns.TableAgents: agents} {
		if b.Rows() == 0 {
			continue
		}
		for shard := range t.to.Shards() {
			if err := t.to.Insert(ctx, shard, table, token, b.Input(), b.Rows()); err != nil {
				return err
			}
		}
	}
	return nil
}

// appendRow adds a record to the block of its table. Forgotten pods and services stay in
// their tables until the retention removes them.
func appendRow(pods *columns.Pods, services *columns.Services, agents *columns.Agents, key string, r row) error {
	switch {
	case strings.HasPrefix(key, schema.KeyPod) && r.value != nil:
		p := new(agentv1.Pod)
		if err := protobuf.Unmarshal(r.value, p); err != nil {
			return err
		}
		pods.Append(p, r.at)
	case strings.HasPrefix(key, schema.KeyService) && r.value != nil:
		s := new(agentv1.Service)
		if err := protobuf.Unmarshal(r.value, s); err != nil {
			return err
		}
		services.Append(s, r.at)
	case strings.HasPrefix(key, schema.KeyAgent):
		var status *agentv1.AgentStatus
		if r.value != nil {
			status = new(agentv1.AgentStatus)
			if err := protobuf.Unmarshal(r.value, status); err != nil {
				return err
			}
		}
		agents.Append(strings.TrimPrefix(key, schema.KeyAgent), status, r.at)
	}
	return nil
}
