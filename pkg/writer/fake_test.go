package writer_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	pb "google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	wire "github.com/metaflowys/metaflow-server/pkg/signal/flows"
	spans "github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// errCrash ends a writer in the middle of what it does.
var errCrash = fault.As(fault.Fenced, errors.New("crashed"))

// partitionLog is one partition of the topic and the group's commit for it.
type partitionLog struct {
	sample       *sample
	number       int
	mu           sync.Mutex
	records      []delivery.Record
	start        int64          // what lies before it was deleted
	marks        map[int64]bool // offsets without a record, where a transaction ended
	offset       int64
	epoch        int32 // committed with offset
	metadata     string
	commits      []string
	id           kafka.TopicID
	epochs       map[int32]int64     // where the log of a leader epoch ended, once there is a later one
	leader       int32               // the current leader epoch
	growing      bool                // records are still to come
	expired      int                 // of the next inserts, how many come after the lease
	steps        int                 // operations until the owner crashes; negative means never
	trouble      map[string][]error  // of the next operations of a name, nil for none
	corrupt      *kafka.CorruptError // what a fetch of its offsets returns
	lent         []delivery.Record   // what the last fetch returned
	fetches      int
	ends         int      // how often somebody asked for the end alone
	collects     bool     // fetches return all there is, at their end
	faults       []string // of the next fetches: "", "stale leader", "out of range", "lost end" or "retention"
	read, sought mark     // what a fetch from there rests on, as in kafka.Claim
	onCommit     func()   // called after each commit, with mu held
	loseEnd      func()   // instead of what "lost end" does, with mu held
}

// mark is an offset before which everything was read, up to a record of an epoch.
type mark struct {
	offset int64
	epoch  int32
}

var noMark = mark{-1, -1}

func newLog() *partitionLog { return newLogOf(&traces) }

func newLogOf(s *sample) *partitionLog {
	return &partitionLog{sample: s, number: 3, metadata: "metaflow", steps: -1, epochs: map[int32]int64{}, trouble: map[string][]error{}, read: noMark, sought: noMark}
}

func (l *partitionLog) end() int64 { return int64(len(l.records)) }

func (l *partitionLog) append(at time.Time, value []byte, resend bool) {
	r := delivery.Record{Offset: l.end(), Time: at, Value: value}
	r.Meta = delivery.Meta{Hash: delivery.HashOf(value), HasHash: true, Resend: resend, Agent: "node-1"}
	l.records = append(l.records, r)
}

// step counts an operation, and fails when it is the one to fail.
func (l *partitionLog) step(ctx context.Context, name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if next := l.trouble[name]; len(next) > 0 {
		l.trouble[name] = next[1:]
		if next[0] != nil {
			return next[0]
		}
	}
	if l.steps == 0 {
		return errCrash
	}
	if l.steps > 0 {
		l.steps--
	}
	return nil
}

func (l *partitionLog) Topic() string  { return l.sample.of.Signal.Topic }
func (l *partitionLog) Partition() int { return l.number }

func (l *partitionLog) Grace() time.Duration { return 3 * time.Second }

func (l *partitionLog) Lease() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.expired > 0 {
		l.expired--
		return time.Now().Add(-time.Second)
	}
	return time.Now().Add(10 * time.Second)
}

func (l *partitionLog) TopicID() kafka.TopicID { return l.id }

func (l *partitionLog) Seek(p kafka.Position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.read, l.sought = noMark, mark{p.Offset, p.LeaderEpoch}
}

func (l *partitionLog) EpochEnd(ctx context.Context, epoch int32) (int64, error) {
	if err := l.step(ctx, "epoch end"); err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if end, ok := l.epochs[epoch]; ok {
		return end, nil
	}
	return l.end(), nil
}

// cut loses the records from an offset on, as when a replica that lacks them begins to lead.
func (l *partitionLog) cut(offset int64) {
	l.records = l.records[:offset]
	for epoch := int32(0); epoch <= l.leader; epoch++ {
		if end, ok := l.epochs[epoch]; !ok || end > offset {
			l.epochs[epoch] = offset
		}
	}
	l.leader++
}

func (l *partitionLog) Position(ctx context.Context) (kafka.Position, error) {
	if err := l.step(ctx, "committed"); err != nil {
		return kafka.Position{}, err
	}
	p := kafka.Position{Offset: l.offset, LeaderEpoch: l.epoch, Metadata: l.metadata}
	l.Seek(p)
	return p, nil
}

func (l *partitionLog) CommitPosition(ctx context.Context, p kafka.Position) error {
	if err := l.step(ctx, "commit"); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.offset, l.epoch, l.metadata = p.Offset, p.LeaderEpoch, p.Metadata
	l.commits = append(l.commits, fmt.Sprint(p.Offset, " ", p.Metadata))
	l.sought = noMark
	if l.onCommit != nil {
		l.onCommit()
	}
	return nil
}

// finished reports whether everything is stored and nothing is planned.
func (l *partitionLog) finished() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	end, ended := l.epochs[l.epoch]
	cut := ended && end < l.offset // and what was read before is gone
	return !l.growing && !cut && l.offset == l.end() && !strings.Contains(l.metadata, " to=")
}

// fetchRecords is how many records one fetch returns at most.
const fetchRecords = 3

// fault is what goes wrong with this fetch.
func (l *partitionLog) fault() string {
	if len(l.faults) == 0 {
		return ""
	}
	fault := l.faults[0]
	l.faults = l.faults[1:]
	return fault
}

func (l *partitionLog) Fetch(ctx context.Context, offset int64, _ int, maxWait time.Duration) (kafka.Batch, error) {
	if err := l.step(ctx, "fetch"); err != nil {
		return kafka.Batch{}, err
	}
	batch, err := l.answer(offset)
	if err == nil && batch.Next == offset {
		select {
		case <-time.After(maxWait):
		case <-ctx.Done():
			return kafka.Batch{}, ctx.Err()
		}
	}
	return batch, err
}

// Collect waits as long as it may where the broker collects, and returns what there is then.
func (l *partitionLog) Collect(ctx context.Context, offset int64, _, maxBytes int, maxWait time.Duration) (kafka.Batch, error) {
	if l.collects {
		if err := retry.Sleep(ctx, maxWait); err != nil {
			return kafka.Batch{}, err
		}
		maxWait = 0
	}
	return l.Fetch(ctx, offset, maxBytes, maxWait)
}

func (l *partitionLog) answer(offset int64) (kafka.Batch, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// What the last fetch returned is not valid any more, so let nobody read it.
	for i := range l.lent {
		clear(l.lent[i].Value)
		l.lent[i] = delivery.Record{Offset: -1}
	}
	l.lent = l.lent[:0]
	fault := l.fault()
	switch fault {
	case "lost end": // no replica in sync was left, and another one leads
		if l.loseEnd == nil {
			l.cut(l.end() - 2)
			break
		}
		l.loseEnd()
	case "retention":
		l.start = min(l.start+2, l.end())
	}
	for _, m := range []mark{l.read, l.sought} {
		if end, ended := l.epochs[m.epoch]; m.offset == offset && ended && end < offset {
			return kafka.Batch{}, kafka.ErrTruncated
		}
	}
	end := l.end()
	switch fault {
	case "stale leader": // it does not know yet how far the log is replicated
		end = offset
	case "out of range":
		return kafka.Batch{}, kafka.ErrOffsetOutOfRange
	case "throttled":
		return kafka.Batch{Next: offset, HighWatermark: end, LeaderEpoch: -1, Throttled: true}, nil
	}
	if offset < l.start || offset > end {
		return kafka.Batch{}, kafka.ErrOffsetOutOfRange
	}
	if bad := l.corrupt; bad != nil && offset >= bad.Offset && offset < bad.Next {
		return kafka.Batch{}, bad
	}
	l.fetches++
	to := min(offset+1+int64(l.fetches)%fetchRecords, end)
	if l.collects {
		to = end
	}
	if bad := l.corrupt; bad != nil && offset < bad.Offset {
		to = min(to, bad.Offset)
	}
	for _, r := range l.records[offset:to] {
		if l.marks[r.Offset] {
			continue
		}
		r.Value = append([]byte(nil), r.Value...)
		l.lent = append(l.lent, r)
	}
	batch := kafka.Batch{Records: l.lent, Next: to, HighWatermark: end, LeaderEpoch: -1}
	if len(l.lent) > 0 {
		batch.LeaderEpoch = l.epochOf(to - 1)
		l.read = mark{to, batch.LeaderEpoch}
	}
	return batch, nil
}

// epochOf is the leader epoch of the record at offset.
func (l *partitionLog) epochOf(offset int64) int32 {
	for epoch := range l.leader {
		if offset < l.epochs[epoch] {
			return epoch
		}
	}
	return l.leader
}

func (l *partitionLog) Bounds(ctx context.Context) (int64, int64, error) {
	if err := l.step(ctx, "bounds"); err != nil {
		return 0, 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.start, l.end(), nil
}

func (l *partitionLog) End(context.Context) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ends++
	return l.end(), nil
}

func (l *partitionLog) OffsetAt(ctx context.Context, t time.Time) (int64, error) {
	if err := l.step(ctx, "offset at"); err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.records[l.start:] {
		if !r.Time.Before(t) {
			return r.Offset, nil
		}
	}
	return l.end(), nil
}

// table is a ClickHouse that knows what it has stored.
type table struct {
	sample *sample
	mu     sync.Mutex
	shards int
	tokens map[string]bool
	at     map[string]int // the shard that knows the token
	spans  map[string]int // or flows, by id: how often each is stored
	poison map[string]bool
	broken error        // of every insert
	hangs  bool         // until the context of the insert ends
	away   map[int]bool // shards that do not answer
	// outcome is that of the next inserts: "", "fails", "busy", "limit", "answer lost", "partly",
	// "crash", "mended", which ends all poison, "view fails" and "view busy", after the rows are
	// stored, and "token only" and "token busy", when ClickHouse writes down the token without the
	// rows.
	outcome []string
	inserts int
	rows    []int // of each insert that succeeded
	lookups int
	asleep  chan struct{} // what its inserts wait for before they look at anything
	atMost  int           // rows that fit into its memory; 0 means any number
	blind   bool          // look-ups see nothing
	running []running     // inserts that nobody waits for any more, and which may still succeed
}

// running is an insert under way.
type running struct {
	query string
	put   func()
}

// tooManyParts and outOfMemory are answers of ClickHouse. The second might not come for fewer rows.
var (
	tooManyParts = &ch.Exception{Code: proto.ErrTooManyParts, Name: "TOO_MANY_PARTS"}
	outOfMemory  = &ch.Exception{Code: proto.ErrMemoryLimitExceeded, Name: "MEMORY_LIMIT_EXCEEDED"}
)

func newTable() *table { return newTableOf(&traces) }

func newTableOf(s *sample) *table {
	return &table{sample: s, shards: 2, at: map[string]int{}, tokens: map[string]bool{}, spans: map[string]int{}, poison: map[string]bool{}}
}

func (s *table) Shards() int { return s.shards }

func (s *table) InsertGuarded(ctx context.Context, guard clickhouse.Guard, shard int, name, token string, input proto.Input, rows int) error {
	s.mu.Lock()
	asleep := s.asleep
	s.mu.Unlock()
	if asleep != nil {
		<-asleep
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inserts++
	if err := ctx.Err(); err != nil {
		return err
	}
	if shard < 0 || shard >= s.shards || name != s.sample.of.Name {
		return fault.As(fault.Rejected, fmt.Errorf("insert into shard %d, table %s", shard, name))
	}
	if guard.Until != nil && !time.Now().Before(guard.Until()) {
		return clickhouse.ErrExpired
	}
	if s.away[shard] {
		return errors.New("connection refused")
	}
	if s.hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	if s.broken != nil {
		return s.broken
	}
	outcome := ""
	if len(s.outcome) > 0 {
		outcome, s.outcome = s.outcome[0], s.outcome[1:]
	}
	switch outcome {
	case "fails":
		return errors.New("connection refused")
	case "busy":
		return tooManyParts
	case "limit":
		return outOfMemory
	case "crash":
		return errCrash
	case "refused":
		return fault.As(fault.Rejected, errors.New("constraint violated"))
	case "mended":
		clear(s.poison)
	}
	ids := s.sample.ids(input)
	if len(ids) != rows {
		return fault.As(fault.Rejected, fmt.Errorf("%d rows announced, %d sent", rows, len(ids)))
	}
	if s.atMost > 0 && rows > s.atMost {
		return outOfMemory
	}
	// Values are checked before the token is.
	for _, id := range ids {
		if s.poison[id] {
			return fault.As(fault.Rejected, errors.New("constraint violated"))
		}
	}
	put := func() {
		if at, ok := s.at[token]; s.tokens[token] && (!ok || at == shard) {
			return
		}
		s.tokens[token], s.at[token] = true, shard
		for _, id := range ids {
			s.spans[id]++
		}
	}
	switch outcome {
	case "token only":
		s.tokens[token], s.at[token] = true, shard
		return errors.New("connection reset")
	case "token busy":
		s.tokens[token], s.at[token] = true, shard
		return tooManyParts
	case "runs on": // and nobody hears of it
		s.running = append(s.running, running{guard.Query, put})
		return errors.New("timeout")
	case "partly": // a block of two days makes two parts
		if !s.tokens[token] {
			for _, id := range ids[:rows/2] {
				s.spans[id]++
			}
		}
		return errors.New("timeout")
	}
	put()
	s.rows = append(s.rows, rows)
	switch outcome {
	case "answer lost":
		return errors.New("timeout")
	case "view fails":
		return fault.As(fault.Rejected, errors.New("cannot parse in view"))
	case "view busy":
		return tooManyParts
	}
	return nil
}

// Settle lets come to its end what runs with rows of the query.
func (s *table) Settle(_ context.Context, shard int, query string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away[shard] || s.hangs {
		return errors.New("connection refused")
	}
	s.running = slices.DeleteFunc(s.running, func(r running) bool {
		ours := clickhouse.Covers(r.query, query)
		if ours {
			r.put()
		}
		return ours
	})
	return nil
}

func (s *table) Existing(_ context.Context, _ int, _ bool, table *columns.Table, keys []signal.Key) (map[signal.Key]struct{}, error) {
	if table.Name != s.sample.of.Name {
		return nil, fmt.Errorf("look up in %s", table.Name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lookups++
	found := map[signal.Key]struct{}{}
	for _, k := range keys {
		if s.blind {
			break
		}
		if s.spans[s.sample.found(&k)] > 0 {
			found[k] = struct{}{}
		}
	}
	return found, nil
}

// sample makes and reads the items of one signal. They have numbers, and an id
// for each number.
type sample struct {
	of      columns.Table
	request func(at time.Time, numbers ...int) []byte
	id      func(number int) string
	ids     func(proto.Input) []string   // of the rows of a block
	found   func(key *signal.Key) string // the id of the item with this key
	numbers func(value []byte) []int     // of the items of a record; none when it is malformed
}

var (
	traces = sample{
		columns.TracesTable(), request, spanID,
		func(input proto.Input) []string {
			return column(input, "span_id", 16, func(b []byte) string { return string(b) })
		},
		func(key *signal.Key) string {
			_, id := spans.IDs(key)
			return hex.EncodeToString(id)
		},
		func(value []byte) (numbers []int) {
			var req coltracepb.ExportTraceServiceRequest
			if pb.Unmarshal(value, &req) != nil {
				return nil
			}
			for _, s := range req.ResourceSpans[0].ScopeSpans[0].Spans {
				n, err := strconv.Atoi(string(s.SpanId))
				if err != nil {
					panic(err) // request wrote it
				}
				numbers = append(numbers, n)
			}
			return numbers
		},
	}
	flows = sample{
		columns.FlowsTable(nil), flowRequest, flowID,
		func(input proto.Input) []string {
			return column(input, "connection", 8, func(b []byte) string { return flowID(int(binary.LittleEndian.Uint64(b)) - 1) })
		},
		func(key *signal.Key) string {
			identity := wire.IdentityOf(key)
			if identity.Agent != "agent-1" || identity.NetworkNamespace != 7 || identity.End == 0 {
				return ""
			}
			return flowID(int(identity.Connection) - 1)
		},
		func(value []byte) (numbers []int) {
			var req agentv1.ExportFlowsRequest
			if pb.Unmarshal(value, &req) != nil {
				return nil
			}
			for _, f := range req.Groups[0].Flows {
				numbers = append(numbers, int(f.Connection)-1)
			}
			return numbers
		},
	}
	samples = map[string]*sample{"spans": &traces, "flows": &flows}
)

// column reads the values of a column of so many bytes each.
func column(input proto.Input, name string, width int, id func([]byte) string) (ids []string) {
	for _, c := range input {
		if c.Name == name {
			var b proto.Buffer
			c.Data.EncodeColumn(&b)
			for i := 0; i < len(b.Buf); i += width {
				ids = append(ids, id(b.Buf[i:i+width]))
			}
		}
	}
	return ids
}

// letters is the dead-letter topic.
type letters struct {
	mu     sync.Mutex
	all    []delivery.DeadLetter
	values [][]byte
	max    int // bytes of a letter that Kafka takes; 0 means any number
}

func (d *letters) Produce(_ context.Context, batch []kafka.Outgoing) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	large := &kafka.TooLargeError{Cause: errors.New("message too large")}
	for i, o := range batch {
		var l delivery.DeadLetter
		size := len(o.Value)
		for _, h := range o.Headers {
			l.Set(h.Key, h.Value)
			size += len(h.Key) + len(h.Value)
		}
		if d.max > 0 && size > d.max {
			large.Records = append(large.Records, i)
			continue
		}
		d.all, d.values = append(d.all, l), append(d.values, bytes.Clone(o.Value))
	}
	if len(large.Records) > 0 {
		return large
	}
	return nil
}

// request is an OTLP request with spans of these numbers.
func request(at time.Time, numbers ...int) []byte {
	var spans []*tracepb.Span
	for _, n := range numbers {
		spans = append(spans, &tracepb.Span{
			TraceId: []byte("0123456789abcdef"), SpanId: fmt.Appendf(nil, "%08d", n),
			StartTimeUnixNano: uint64(at.UnixNano()), EndTimeUnixNano: uint64(at.UnixNano()),
		})
	}
	b, err := pb.Marshal(&coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		ScopeSpans: []*tracepb.ScopeSpans{{Spans: spans}},
	}}})
	if err != nil {
		panic(err) // what is built here can be marshalled
	}
	return b
}

func spanID(n int) string { return hex.EncodeToString(fmt.Appendf(nil, "%08d", n)) }

// flowRequest is an ExportFlowsRequest with flows of these numbers.
func flowRequest(at time.Time, numbers ...int) []byte {
	group := &agentv1.FlowGroup{NetworkNamespace: 7}
	for _, n := range numbers {
		group.Flows = append(group.Flows, &agentv1.Flow{
			StartTimeUnixNano: uint64(at.UnixNano()), EndTimeUnixNano: uint64(at.UnixNano()), Connection: uint64(n) + 1,
			LocalAddress: []byte{10, 0, 0, 1}, LocalPort: 1, PeerAddress: []byte{10, 0, 0, 2}, PeerPort: 1,
		})
	}
	b, err := pb.Marshal(&agentv1.ExportFlowsRequest{AgentId: "agent-1", Groups: []*agentv1.FlowGroup{group}})
	if err != nil {
		panic(err) // what is built here can be marshalled
	}
	return b
}

func flowID(n int) string { return fmt.Sprint("flow ", n) }
