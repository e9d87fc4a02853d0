package writer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// gatherer joins what the partitions of a shard store at the same moment into one INSERT, so that
// the number of INSERTs, and of parts in ClickHouse, does not grow with the partitions. It knows
// nothing about the rows: each partition gets the outcome of the INSERT that had its rows, and
// judges it as if they had gone out alone.
//
// A partition that stores at a tick waits until all others that may have rows for the tick are
// there, but no longer than patience. A block that must give back memory waits for a moment. A
// block that is full waits for nobody, and takes along those that wait.
type gatherer struct {
	writer *Writer
	share  *share
	shard  int
	spare  chan columns.Block // an idle one, for joining

	mu      sync.Mutex
	coming  map[time.Time]int // by tick: partitions that may have rows for it
	waiting []*offer
	timer   *time.Timer // closes the waiting group; nil while none waits
}

// offer is the block of one partition that is to be stored. Its partition does not touch the
// block before done has the outcome.
type offer struct {
	partition *partition
	ctx       context.Context //nolint:containedctx // of the call that this value is
	owned     context.Context //nolint:containedctx // ends when the partition is given up: nothing is sent again
	token     string
	block     columns.Block
	tick      time.Time // others are waited for until all are there that come for it; zero: for a moment
	done      chan outcome
}

// outcome is that of an INSERT for one of its partitions.
type outcome struct {
	err    error
	joined bool // there were rows of others in it
	again  bool // an attempt before it failed
}

const (
	// patience bounds how long a block waits for those of other partitions. One that takes
	// longer to decode, or whose plan takes longer to commit, goes out later.
	patience = 250 * time.Millisecond
	// moment is how long a block waits that is sent again: those that failed with it come back at
	// about the same time.
	moment = 50 * time.Millisecond
)

// repeatPause is between two attempts to insert joined blocks.
var repeatPause = retry.Policy{First: 200 * time.Millisecond, Max: delivery.MaxBackoff}

func newGatherer(w *Writer, s *share, shard int) *gatherer {
	return &gatherer{writer: w, share: s, shard: shard, spare: make(chan columns.Block, 1), coming: make(map[time.Time]int)}
}

// expect notes that a partition may have rows for a tick, until it offers them or is forgotten.
func (g *gatherer) expect(p *partition, tick time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.leave(p)
	p.expected = tick
	g.coming[tick]++
}

// forget notes that a partition has no rows for the tick, or is held up.
func (g *gatherer) forget(p *partition) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.leave(p)
	g.closeComplete()
}

func (g *gatherer) leave(p *partition) {
	if p.expected.IsZero() {
		return
	}
	if g.coming[p.expected]--; g.coming[p.expected] == 0 {
		delete(g.coming, p.expected)
	}
	p.expected = time.Time{}
}

// insert stores the block of an offer, with those of others if there are any.
func (g *gatherer) insert(o *offer, urgent bool) outcome {
	g.mu.Lock()
	g.leave(o.partition)
	g.waiting = append(g.waiting, o)
	switch {
	case urgent:
		g.close()
	case o.tick.IsZero():
		g.closeWithin(moment)
	default:
		g.closeWithin(min(patience, g.writer.cfg.MaxWait/4))
		g.closeComplete()
	}
	g.mu.Unlock()
	select {
	case out := <-o.done:
		return out
	case <-o.ctx.Done():
	}
	if g.withdraw(o) {
		return outcome{err: context.Cause(o.ctx)} // nothing was sent
	}
	return <-o.done // the end of the context ends the INSERT
}

// closeWithin makes sure that the group is sent in time.
func (g *gatherer) closeWithin(d time.Duration) {
	if g.timer != nil {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(d, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.timer == timer {
			g.close()
		}
	})
	g.timer = timer
}

// closeComplete sends the group once no partition is expected that it waits for.
func (g *gatherer) closeComplete() {
	var last time.Time
	for _, o := range g.waiting {
		if o.tick.After(last) {
			last = o.tick
		}
	}
	if last.IsZero() {
		return
	}
	for tick := range g.coming {
		if !tick.After(last) {
			return
		}
	}
	g.close()
}

// close sends the group.
func (g *gatherer) close() {
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
	group := g.waiting
	g.waiting = nil
	go g.send(group)
}

// withdraw takes an offer back whose group was not closed.
func (g *gatherer) withdraw(o *offer) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(g.waiting, o)
	if i < 0 {
		return false
	}
	g.waiting = slices.Delete(g.waiting, i, i+1)
	return true
}

// send stores a group in as few INSERTs as their bounds allow.
func (g *gatherer) send(group []*offer) {
	slices.SortFunc(group, func(a, b *offer) int { return a.partition.claim.Partition() - b.partition.claim.Partition() })
	var inserts sync.WaitGroup
	for len(group) > 0 {
		n := g.fitting(group)
		together := group[:n:n]
		group = group[n:]
		inserts.Go(func() {
			if len(together) == 1 {
				o := together[0]
				o.done <- outcome{err: o.partition.insertAlone(o.ctx, o.token, o.block)}
				return
			}
			g.insertJoined(together)
		})
	}
	inserts.Wait()
}

// fitting returns how many of the first offers one INSERT may carry.
func (g *gatherer) fitting(group []*offer) int {
	rows, size := 0, int64(0)
	for n, o := range group {
		rows += o.block.Rows()
		size += int64(o.block.Bytes())
		if n > 0 && (rows > g.writer.cfg.MaxBatchRows || size > g.share.maxBatch) {
			return n
		}
	}
	return len(group)
}

// insertJoined stores the blocks of offers as one. Those whose lease is over are left out.
func (g *gatherer) insertJoined(offers []*offer) {
	for len(offers) > 1 {
		again, err := g.tryJoined(offers)
		if !errors.Is(err, clickhouse.ErrExpired) {
			for _, o := range offers {
				o.done <- outcome{err: err, joined: true, again: again}
			}
			return
		}
		// Nothing was sent. One that is late must not hold up the others.
		left := slices.DeleteFunc(slices.Clone(offers), func(o *offer) bool {
			late := !time.Now().Before(o.partition.claim.Lease())
			if late {
				o.done <- outcome{err: err, joined: true}
			}
			return late
		})
		if len(left) == len(offers) { // the lease that was over is not any more
			for _, o := range left {
				o.done <- outcome{err: err, joined: true}
			}
			return
		}
		offers = left
	}
	for _, o := range offers {
		o.done <- outcome{err: o.partition.insertAlone(o.ctx, o.token, o.block)}
	}
}

// tryJoined joins the blocks, without copying their rows, and inserts the result. When ClickHouse answers with an error, it
// sends the same again for a while, as a partition does with a block of its own, see delivery.RepeatFor.
// After that each partition looks up which of its rows are stored. again says that it did so.
func (g *gatherer) tryJoined(offers []*offer) (again bool, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	repeating, stop := context.WithCancel(ctx)
	defer stop()
	block := g.take()
	defer g.put(block)
	partitions, tokens := make([]int, len(offers)), make([]string, len(offers))
	for i, o := range offers {
		defer context.AfterFunc(o.ctx, cancel)()
		defer context.AfterFunc(o.owned, stop)()
		partitions[i], tokens[i] = o.partition.claim.Partition(), o.token
		block.Join(o.block)
	}
	topic := offers[0].partition.claim.Topic()
	guard := clickhouse.Guard{Query: clickhouse.QueryOf(topic, partitions...), Until: func() time.Time { return firstEnd(offers) }}
	token := delivery.JoinedToken(topic, tokens)
	begun := time.Now()
	tooMuch := 0
	for attempt := 1; ; attempt++ {
		err := g.writer.send(ctx, g.share, g.shard, guard, token, block, len(offers))
		switch {
		case err == nil, attempt == 1 && errors.Is(err, clickhouse.ErrExpired):
			return attempt > 1, err
		case clickhouse.Divisible(err):
			tooMuch++
		}
		repeat := clickhouse.Answered(err) && fault.ClassOf(err) != fault.Rejected && tooMuch < delivery.TooMuchEnough &&
			!g.share.viewsFail.Load()
		if !repeat || retry.Sleep(repeating, repeatPause.Pause(attempt)) != nil || !delivery.MayRepeat(begun, time.Now()) {
			return attempt > 1, joinedError(err, len(offers))
		}
		g.writer.metrics.retries.WithLabelValues("insert").Inc()
		g.writer.log.Warn("inserting the same rows again", slog.Any("partitions", partitions), slog.Int("attempt", attempt), slog.Any("error", err))
	}
}

// joinedError is the error of an INSERT for each of its partitions. What ClickHouse answered to all
// of them says nothing of the block of one, so it is no answer to that.
func joinedError(err error, partitions int) error {
	if refused(err) {
		return fmt.Errorf("with %d other partitions: %w: %v", partitions-1, errRefusedTogether, err) //nolint:errorlint // its class is not that of the block
	}
	if clickhouse.Answered(err) || errors.Is(err, clickhouse.ErrExpired) {
		return fmt.Errorf("with %d other partitions: %v", partitions-1, err) //nolint:errorlint // as above
	}
	return fmt.Errorf("with %d other partitions: %w", partitions-1, err)
}

// errRefusedTogether means that ClickHouse refused rows of several partitions; which ones is found
// out by each with its own.
var errRefusedTogether = errors.New("refused together")

// refused reports whether ClickHouse may take the block in parts.
func refused(err error) bool {
	return fault.ClassOf(err) == fault.Rejected || clickhouse.Divisible(err)
}

// firstEnd is the end of the lease that ends first.
func firstEnd(offers []*offer) time.Time {
	first := offers[0].partition.claim.Lease()
	for _, o := range offers[1:] {
		if until := o.partition.claim.Lease(); until.Before(first) {
			first = until
		}
	}
	return first
}

func (g *gatherer) take() columns.Block {
	select {
	case block := <-g.spare:
		return block
	default:
		return g.writer.table.New()
	}
}

func (g *gatherer) put(block columns.Block) {
	block.Reset()
	select {
	case g.spare <- block:
	default:
	}
}

// insertBatch stores the block of the batch: with the blocks of other partitions, unless it is
// large, or a repetition that must be the same to the byte, or one of several that ClickHouse refused
// together. again says that it was sent more than once. When owned ends, the INSERT under way is the
// last one.
func (p *partition) insertBatch(owned, ctx context.Context, token string, block columns.Block) (again bool, err error) {
	if p.bulk || p.alone {
		err := p.insertAlone(ctx, token, block)
		if !errors.Is(err, clickhouse.ErrExpired) { // else nothing was sent
			p.alone = clickhouse.Answered(err)
		}
		return false, err
	}
	o := &offer{partition: p, ctx: ctx, owned: owned, token: token, block: block, done: make(chan outcome, 1)}
	fresh := !p.offered
	if p.offered = true; fresh && p.due() {
		o.tick = p.tick
	}
	out := p.share.gatherer.insert(o, fresh && p.full())
	p.alone = errors.Is(out.err, errRefusedTogether) || !out.joined && clickhouse.Answered(out.err)
	if out.err == nil && !o.tick.IsZero() {
		p.ticks.stored(time.Since(o.tick))
	}
	return out.again, out.err
}

// insertAlone stores rows of the partition in an INSERT of its own.
func (p *partition) insertAlone(ctx context.Context, token string, block columns.Block) error {
	guard := clickhouse.Guard{Query: p.query(), Until: p.claim.Lease}
	return p.send(ctx, p.share, p.shard, guard, token, block, 1)
}

// send is one INSERT.
func (w *Writer) send(ctx context.Context, s *share, shard int, guard clickhouse.Guard, token string, block columns.Block, partitions int) error {
	begun := time.Now()
	err := w.store.InsertGuarded(ctx, guard, shard, block.Table(), token, block.Input(), block.Rows())
	if err == nil {
		s.accepted.Add(1)
		w.metrics.insert(block.Rows(), block.Bytes(), partitions, time.Since(begun))
	}
	return err
}

// query names the partition's inserts to ClickHouse.
func (p *partition) query() string {
	return clickhouse.QueryOf(p.claim.Topic(), p.claim.Partition())
}
