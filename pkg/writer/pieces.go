package writer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"

	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// pieces is a refused block taken apart: the records it was made of, read
// again, and where each of its rows came from.
type pieces struct {
	*partition
	rng      delivery.Range
	records  []delivery.Record
	rows     []origin // those that are not stored at first
	refused  []refusal
	accepted piece // one that ClickHouse took; without rows while there is none
	inARow   int   // single rows that were refused since ClickHouse took anything
	seen     int64 // share.accepted at the last refusal
}

// origin is the item that a row was made of.
type origin struct {
	record int // in pieces.records
	item
}

// piece is some of the rows, inserted as one block.
type piece struct {
	token string
	rows  []origin
}

// refusal is a row that was refused alone.
type refusal struct {
	origin
	cause error
}

// errTable says that the table refuses everything.
var errTable = errors.New("the table takes nothing else either, so it is the table's trouble")

// insertPieces stores the rows of the batch that ClickHouse accepts, found by
// bisecting, and adds the others to the batch's dead letters. None of the batch's rows is
// stored, and nothing is under way, when it is called. After an error it is not known which
// are.
//
// A row is at fault only when the table refuses it, takes another after that, and refuses it
// once more. Otherwise the table is at fault, or was while somebody mended it: then nothing
// is diverted, and the caller waits.
func (p *partition) insertPieces(ctx, graceful context.Context, rng delivery.Range) error {
	ps := &pieces{partition: p, rng: rng}
	if err := ps.load(graceful); err != nil {
		return err
	}
	ps.spread()
	err := ps.bisect(graceful, ps.rows)
	for pass := 0; pass < 2 && err == nil && len(ps.refused) > 0; pass++ {
		if err = ps.tryOthers(graceful); err == nil && pass == 0 {
			again := make([]origin, len(ps.refused))
			for i, f := range ps.refused {
				again[i] = f.origin
			}
			err = ps.bisect(graceful, again)
		}
	}
	switch {
	case errors.Is(err, errTable):
		return ps.giveUp(ctx, graceful)
	case err != nil:
		return err
	}
	ps.divert()
	return nil
}

// divert makes dead letters of the refused rows: one of those of a record that were refused for
// the same cause, so that the work is that of the records' bytes and not of their rows.
func (ps *pieces) divert() {
	type letter struct {
		record int
		cause  string
	}
	indexes := map[letter]map[int]bool{}
	var letters []letter // in the order of refusal
	for _, f := range ps.refused {
		l := letter{f.record, f.cause.Error()}
		if indexes[l] == nil {
			indexes[l] = map[int]bool{}
			letters = append(letters, l)
		}
		indexes[l][f.index] = true
	}
	for _, l := range letters {
		ps.divertItems(&ps.records[l.record], indexes[l], l.cause)
	}
	ps.batch.refusedRows = len(ps.refused)
}

// load reads the batch's records again and lists their items that are not stored.
func (ps *pieces) load(ctx context.Context) error {
	records, kept, err := ps.partition.load(ctx, ps.rng)
	if err != nil {
		return err
	}
	ps.records = records
	for i := range records {
		for _, it := range ps.items(&records[i]) {
			if _, absent := kept[i].absent[it.index]; !absent {
				ps.rows = append(ps.rows, origin{i, it})
			}
		}
	}
	return nil
}

// spread puts the rows in an order in which neighbours come from far apart,
// so that a run of bad rows does not look like a table that refuses all.
func (ps *pieces) spread() {
	n := len(ps.rows)
	step := max(1, n*5/8)
	for gcd(step, n) != 1 {
		step++
	}
	spread := make([]origin, n)
	for i := range spread {
		spread[i] = ps.rows[i*step%n]
	}
	ps.rows = spread
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// enough is how many single rows have to be refused in a row until it is doubted that the
// table takes anything.
const enough = 64

// bisect stores those of the rows that are accepted, and notes the others as refused. The
// error is errTable when it became clear meanwhile that the table is at fault.
func (ps *pieces) bisect(ctx context.Context, rows []origin) error {
	ps.refused, ps.inARow = nil, 0
	return ps.insert(ctx, rows)
}

// insert stores rows, and notes those that are refused alone.
func (ps *pieces) insert(ctx context.Context, rows []origin) error {
	if ps.inARow >= enough {
		if err := ps.tryOthers(ctx); err != nil {
			return err
		}
		ps.inARow = 0
	}
	this := piece{ps.rng.Token() + "/piece-" + rand.Text(), rows}
	refused := ps.insertPiece(ctx, this)
	switch {
	case refused == nil:
		ps.accepted, ps.inARow = this, 0
		return nil
	case fault.ClassOf(refused) != fault.Rejected && (ps.batch.divisible < divideAfter || !clickhouse.Divisible(refused)):
		return refused
	}
	missing, err := ps.missing(ctx, rows)
	switch {
	case err != nil:
		return err
	case len(missing) < len(rows): // they were in the table before something else refused them
		ps.batch.found += len(rows) - len(missing)
		ps.viewFailed(refused)
		if len(missing) == 0 {
			return nil
		}
	case len(rows) == 1:
		ps.seen = ps.share.accepted.Load()
		ps.refused = append(ps.refused, refusal{rows[0], refused})
		ps.inARow++
		return nil
	}
	middle := len(missing) / 2
	if middle > 0 {
		if err := ps.insert(ctx, missing[:middle]); err != nil {
			return err
		}
	}
	return ps.insert(ctx, missing[middle:])
}

// missing returns those of the rows that are not stored.
func (ps *pieces) missing(ctx context.Context, rows []origin) ([]origin, error) {
	keys := make([]signal.Key, len(rows))
	for i, o := range rows {
		keys[i] = o.key
	}
	stored, err := ps.lookUp(ctx, "look up "+ps.signal.Items, keys, false)
	if err != nil || len(stored) == 0 {
		return rows, err
	}
	return slices.DeleteFunc(slices.Clone(rows), func(o origin) bool {
		_, ok := stored[o.key]
		return ok
	}), nil
}

// tryOthers returns nil when the table takes other rows than those that were refused last: a
// piece that it has taken is sent again, under its token, so that it is checked as before and not
// stored twice. Where there is none, other partitions may have had more luck, also since the
// batch was given up before. It is errTable when nothing was taken.
func (ps *pieces) tryOthers(ctx context.Context) error {
	if len(ps.accepted.rows) == 0 {
		since := ps.seen
		if ps.refusedAt >= 0 {
			since = ps.refusedAt
		}
		if ps.share.accepted.Load() > since {
			return nil
		}
		return errTable
	}
	err := ps.insertPiece(ctx, ps.accepted)
	if fault.ClassOf(err) == fault.Rejected || clickhouse.Divisible(err) {
		return errTable
	}
	return err
}

// insertPiece stores rows as one block.
func (ps *pieces) insertPiece(ctx context.Context, pc piece) error {
	type place struct{ record, index int }
	wanted := make(map[place]struct{}, len(pc.rows))
	for _, o := range pc.rows {
		wanted[place{o.record, o.index}] = struct{}{}
	}
	block := ps.blocks.Get().(columns.Block)
	defer ps.blocks.Put(block)
	defer block.Reset()
	for i := range ps.records {
		r := &ps.records[i]
		_, err := block.Append(r.Value, ps.source(r, func(index int, _ signal.Key) bool {
			_, ok := wanted[place{i, index}]
			return !ok
		}))
		if err != nil {
			return fmt.Errorf("decode offset %d again: %w", r.Offset, err)
		}
	}
	if err := ps.insertBlock(ctx, pc.token, block); err != nil {
		return fmt.Errorf("insert rows of %s: %w", ps.rng.Token(), err)
	}
	return nil
}

// giveUp forgets the batch: its rows wait for others, of the records after them or of
// other partitions, which tell whether the table is at fault. The plan goes with it; what is
// stored of the range is looked up when it is read again.
func (ps *pieces) giveUp(ctx, graceful context.Context) error {
	b, token := ps.batch, ps.rng.Token()
	ps.unsure = max(ps.unsure, b.to)
	ps.refusedAt = ps.seen
	if err := ps.commit(ctx, graceful, "commit", b.from, b.before, delivery.Plan{}); err != nil {
		return err
	}
	ps.dropBatch()
	return fmt.Errorf("insert %s: single rows of it are refused, and %w: %w: %w", token, errTable, ps.refused[0].cause, errStartOver)
}
