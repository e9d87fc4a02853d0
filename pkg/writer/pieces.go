package writer

import (
	"context"
	"errors"
	"fmt"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/plan"
	"github.com/metaflowys/metaflow-server/pkg/record"
)

// pieces is a refused block taken apart: the records it was made of, read
// again, and where each of its rows came from.
type pieces struct {
	*partition
	rng     plan.Range
	records []record.Record
	kept    []*kept  // by record
	rows    []origin // of all acceptable items, those found stored included
	refused []refusal

	progress bool // some rows could be stored, now or earlier
}

// origin is the item that a row was made of.
type origin struct {
	record int // in pieces.records
	index  int // of the item in its record
}

// piece is rows [from, to) of the range.
type piece struct{ from, to int }

type refusal struct {
	row   int
	cause error
}

// insertPieces stores the rows of the batch that ClickHouse accepts, found by
// bisecting, and adds the others to the batch's dead letters.
//
// The pieces are the nodes of one tree over the items of the range. Which
// items a piece has, and so what its token stands for, depends on nothing but the
// log. Items that were found stored already are simply missing from theirs. A piece
// that was refused is not tried again, even if it might be accepted by now: parts of
// it may be stored. A writer that comes after a crash does not know which these are, and
// looks the items up (see partition.finish).
//
// When nothing at all can be stored, the trouble is with the table and not
// with the rows, and may be mended: then nothing is diverted and the error
// makes the caller wait.
func (p *partition) insertPieces(ctx context.Context, rng plan.Range) error {
	ps := &pieces{partition: p, rng: rng}
	if err := ps.load(ctx); err != nil {
		return err
	}
	ps.spread()
	err := ps.insert(ctx, 0, len(ps.rows))
	if errors.Is(err, errAllRefused) || err == nil && ps.hopeless() {
		if !p.batch.doubtful {
			clear(p.batch.split)
		}
		return fmt.Errorf("insert %s: single rows of it are refused too, so it is the table's trouble: %w",
			rng.Token(), fault.As(fault.Retryable, ps.refused[0].cause))
	}
	if err != nil {
		return err
	}
	return ps.divert()
}

// load reads the batch's records again and lists its items.
func (ps *pieces) load(ctx context.Context) error {
	b := ps.batch
	byOffset := make(map[int64]*kept, len(b.kept))
	for i := range b.kept {
		byOffset[b.kept[i].offset] = &b.kept[i]
	}
	err := ps.read(ctx, b.from, b.to, func(r *record.Record) {
		if k, ok := byOffset[r.Offset]; ok {
			ps.progress = ps.progress || len(k.absent) > 0
			own := *r
			own.Value = append([]byte(nil), r.Value...)
			ps.records = append(ps.records, own)
			ps.kept = append(ps.kept, k)
		}
	}, nil)
	if err != nil {
		return err
	}
	if len(ps.records) != len(b.kept) {
		return fmt.Errorf("take %s apart: %d of its %d records are left in the log: %w", ps.rng.Token(), len(ps.records), len(b.kept), errStartOver)
	}
	for i := range ps.records {
		r := &ps.records[i]
		err := ps.listing(r, func(index int, _ Key) {
			ps.rows = append(ps.rows, origin{i, index})
		})
		if err != nil {
			return fmt.Errorf("read offset %d again: %w", r.Offset, err)
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

// enough is how many single rows have to be refused, and none stored, until
// the rest is not tried.
const enough = 64

var errAllRefused = errors.New("every row that was tried is refused")

// hopeless reports whether all rows were refused, and there were several.
func (ps *pieces) hopeless() bool { return !ps.progress && len(ps.refused) > 1 }

// insert stores rows [from, to), and notes those that are refused alone.
func (ps *pieces) insert(ctx context.Context, from, to int) error {
	this := piece{from, to}
	if _, split := ps.batch.split[this]; !split {
		err := ps.insertRows(ctx, from, to)
		switch {
		case err == nil:
			return nil
		case fault.ClassOf(err) != fault.Rejected:
			ps.batch.doubtful = true
			return err
		case to-from == 1:
			ps.refused = append(ps.refused, refusal{from, err})
			if !ps.progress && len(ps.refused) >= enough {
				return errAllRefused
			}
			return nil
		}
		ps.batch.split[this] = struct{}{}
	}
	middle := from + (to-from)/2
	if err := ps.insert(ctx, from, middle); err != nil {
		return err
	}
	return ps.insert(ctx, middle, to)
}

// insertRows stores rows [from, to) as one block.
func (ps *pieces) insertRows(ctx context.Context, from, to int) error {
	wanted := make(map[origin]struct{}, to-from)
	for _, o := range ps.rows[from:to] {
		if _, absent := ps.kept[o.record].absent[o.index]; !absent {
			wanted[o] = struct{}{}
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	block := ps.blocks.Get().(Block)
	defer ps.blocks.Put(block)
	defer block.Reset()
	for i := range ps.records {
		r := &ps.records[i]
		_, err := block.Append(r, ps.accepted(r), func(index int, _ Key) bool {
			_, ok := wanted[origin{i, index}]
			return !ok
		})
		if err != nil {
			return fmt.Errorf("decode offset %d again: %w", r.Offset, err)
		}
	}
	if err := ps.insertBlock(ctx, ps.rng.Part(from, to), block); err != nil {
		return err
	}
	ps.progress = true
	return nil
}

// divert adds the refused rows to the batch's dead letters.
func (ps *pieces) divert() error {
	var errs []error
	for _, f := range ps.refused {
		o := ps.rows[f.row]
		r := &ps.records[o.record]
		value, err := ps.kind.Select(r.Value, func(i int) bool { return i == o.index })
		if err != nil {
			errs = append(errs, err)
			continue
		}
		ps.batch.divert(ps.claim, r, value, f.cause.Error())
	}
	ps.batch.refusedRows = len(ps.refused)
	return errors.Join(errs...)
}
