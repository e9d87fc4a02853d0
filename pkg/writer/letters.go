package writer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// divertCorrupt makes a dead letter that says that records of the log cannot be
// read: their bytes do not match their checksum, or are no record batch.
func (p *partition) divertCorrupt(n delivery.DivertCorrupt) {
	p.openBatch()
	p.batch.divert(p.claim, &delivery.Record{Offset: n.Offset}, nil, n.Err.Error())
	p.metrics.lost.Add(float64(n.Next - n.Offset))
}

// divertRefused makes dead letters of the items of r that no gateway would have
// accepted. Only other programs than ours write such records. Items refused for
// the same reason share a letter: so letters stay few, and what the items of a
// record share is repeated no more often than there are reasons.
func (p *partition) divertRefused(r *delivery.Record, refused []signal.Refused) {
	var letters letters[string]
	for _, f := range refused {
		letters.add(f.Reason, f.Index)
	}
	for _, reason := range letters.keys {
		cause := p.signal.Item + " refused for its " + reason
		if n := len(letters.items[reason]); n > 1 {
			cause = fmt.Sprintf("%d %s refused for their %s", n, p.signal.Items, reason)
		}
		p.divertItems(r, letters.items[reason], cause)
	}
}

// divertRows makes dead letters of rows that ClickHouse refused. Rows of one
// record that were refused for the same cause share a letter: so the work is that
// of the records' bytes and not of their rows.
func (p *partition) divertRows(refused []delivery.RefusedRow) {
	type letter struct {
		record int
		cause  string
	}
	from := p.batch.loaded
	var letters letters[letter]
	for _, r := range refused {
		row := from.rows[r.Row]
		letters.add(letter{row.record, r.Err.Error()}, row.index)
	}
	for _, l := range letters.keys {
		p.divertItems(&from.records[l.record], letters.items[l], l.cause)
	}
}

// letters groups items by the dead letter that they share, in the order of the
// first item of each. The zero value is ready to use.
type letters[K comparable] struct {
	keys  []K
	items map[K]map[int]bool // indexes in the record
}

func (l *letters[K]) add(key K, index int) {
	if l.items == nil {
		l.items = make(map[K]map[int]bool)
	}
	if l.items[key] == nil {
		l.items[key] = make(map[int]bool)
		l.keys = append(l.keys, key)
	}
	l.items[key][index] = true
}

// divertItems makes one dead letter of some items of r.
func (p *partition) divertItems(r *delivery.Record, indexes map[int]bool, cause string) {
	value, err := p.signal.Select(r.Value, func(i int) bool { return indexes[i] })
	if err != nil { // it was decoded a moment ago, so it can be selected from
		value, cause = r.Value, fmt.Sprintf("%s; the letter has the whole record, because: %s", cause, err)
	}
	p.batch.diverted += len(indexes)
	p.batch.divert(p.claim, r, value, cause)
}

// produceLetters hands over the dead letters that Kafka does not have yet. A
// letter that is larger than the topic takes must not stop the partition for
// ever, see divide. After an error, what Kafka took is not sent again.
func (p *partition) produceLetters(ctx context.Context) error {
	b := p.batch
	if b.division == nil {
		waiting := b.dead[b.deadSent:]
		err := p.dead.Produce(ctx, waiting)
		var large *kafka.TooLargeError
		if !errors.As(err, &large) {
			return err
		}
		b.deadSent += sentFirst(waiting, large.Records)
		b.division = &division{refusal: err}
	}
	for ; b.deadSent < len(b.dead); b.deadSent++ {
		if err := p.divide(ctx, &b.dead[b.deadSent]); err != nil {
			return err
		}
	}
	return nil
}

// sentFirst moves the refused letters, whose ascending indexes are given, behind
// those that Kafka took, and returns how many it took.
func sentFirst(letters []kafka.Outgoing, refused []int) (sent int) {
	var large []kafka.Outgoing
	for i, letter := range letters {
		if len(large) < len(refused) && refused[len(large)] == i {
			large = append(large, letter)
			continue
		}
		letters[sent] = letter
		sent++
	}
	copy(letters[sent:], large)
	return sent
}

// division holds the remaining parts of a letter that was refused for its size.
type division struct {
	parts   []part // a stack, the next one last
	alone   int    // parts that could not be divided since Kafka took one
	refusal error  // the last one
}

// part is a letter with some items of the one that is divided.
type part struct {
	letter  kafka.Outgoing
	items   int
	refused bool
}

// aloneEnough is how many single items have to be refused in a row until the rest
// is left out undivided: what they share may be too large by itself.
const aloneEnough = 16

// divide hands over a letter that was refused: in halves, or without its value
// when it has a single item or its items cannot be told apart. It goes on where
// it failed before.
func (p *partition) divide(ctx context.Context, letter *kafka.Outgoing) error {
	d := p.batch.division
	if len(d.parts) == 0 {
		d.parts, d.alone = append(d.parts, part{*letter, p.signal.Count(letter.Value), true}), 0
	}
	for len(d.parts) > 0 {
		last := len(d.parts) - 1
		if top := &d.parts[last]; !top.refused {
			err := p.dead.Produce(ctx, []kafka.Outgoing{top.letter})
			switch {
			case err == nil:
				d.parts, d.alone = d.parts[:last], 0
			case errors.Is(err, kafka.ErrTooLarge):
				top.refused, d.refusal = true, err
			default:
				return err
			}
			continue
		}
		if halves := p.halves(&d.parts[last]); halves != nil {
			d.parts = append(d.parts[:last], halves...)
			p.batch.deadMore++
			continue
		}
		if err := p.leaveOut(ctx, &d.parts[last].letter); err != nil {
			return err
		}
		d.parts, d.alone = d.parts[:last], d.alone+1
	}
	return nil
}

// halves returns two letters with half of the items each, or nil.
func (p *partition) halves(whole *part) []part {
	if whole.items < 2 || p.batch.division.alone >= aloneEnough {
		return nil
	}
	middle := whole.items / 2
	halves := []part{{whole.letter, whole.items - middle, false}, {whole.letter, middle, false}}
	for n := range halves {
		value, err := p.signal.Select(whole.letter.Value, func(i int) bool { return (i < middle) == (n == 1) })
		if err != nil {
			return nil
		}
		halves[n].letter.Value = value
	}
	return halves
}

// leaveOut hands over a letter without its value.
func (p *partition) leaveOut(ctx context.Context, letter *kafka.Outgoing) error {
	refusal := p.batch.division.refusal
	if len(letter.Value) == 0 {
		return refusal
	}
	err := p.dead.Produce(ctx, []kafka.Outgoing{truncated(letter, refusal)})
	if err == nil {
		p.log.Error("kafka refuses a dead letter, so its value is left out", slog.Any("error", refusal), slog.Int("bytes", len(letter.Value)))
		p.metrics.truncated.Inc()
	}
	return err
}

// truncated returns the letter without its value, which Kafka refused.
func truncated(letter *kafka.Outgoing, refused error) kafka.Outgoing {
	var l delivery.DeadLetter
	for _, h := range letter.Headers {
		l.Set(h.Key, h.Value)
	}
	l.Cause += "; the value is left out: " + refused.Error()
	l.Truncated = int64(len(letter.Value))
	return kafka.Outgoing{Value: []byte{}, Headers: l.Headers()}
}
