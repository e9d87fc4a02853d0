package kafka

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"sync"
	"time"

	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/produce"
	"github.com/segmentio/kafka-go/protocol/rawproduce"
)

// flight is a batch of one partition being sent. A sender owns it while the queue is
// busy; between attempts the queue holds it.
type flight struct {
	queue   *queue
	entries []entry
	size    int           // of the entries before compression
	batch   []byte        // encoded, after its length in 4 bytes; empty before
	encoded chan struct{} // closed when the callers' bytes have been read
	leaked  bool          // an abandoned exchange may still read batch
}

// has reports whether f carries entries of c. A nil flight carries none.
func (f *flight) has(c *call) bool {
	if f == nil {
		return false
	}
	for i := range f.entries {
		if f.entries[i].call == c {
			return true
		}
	}
	return false
}

// wanted reports whether a caller still waits for f.
func (f *flight) wanted() bool {
	for i := range f.entries {
		if !f.entries[i].call.gone {
			return true
		}
	}
	return false
}

// Pools of memory that flights reuse.
var (
	flights  = sync.Pool{New: func() any { return new(flight) }}
	encoders = sync.Pool{New: func() any { return new(encoder) }}
)

// release returns f to the pool, unless an exchange may still read from it.
func (f *flight) release() {
	if f.leaked {
		return
	}
	clear(f.entries)
	*f = flight{entries: f.entries[:0], batch: f.batch[:0]}
	flights.Put(f)
}

// take marks ready queues of one broker busy and returns their flights, as many as the broker's room
// admits. Queues have turns, so that none waits for ever while there is not room for all. The caller
// holds mu.
func (p *Producer) take(leader int32, now time.Time) []*flight {
	var work []*flight
	if now.Before(p.paused[leader]) {
		return nil
	}
	room := p.room(leader)
	left := room.bytes
	for i := range p.queues {
		q := p.queues[(p.turn+i)%len(p.queues)]
		if !q.ready(now) || p.leader(q.partition) != leader {
			continue
		}
		n, size := 0, 0
		if q.flight != nil {
			size = q.flight.size
		} else {
			n, size = q.next(min(p.opts.MaxBatchBytes, room.bytes))
		}
		if len(work) > 0 && size > left {
			p.turn, room.full = q.partition, true
			break
		}
		// A flight that is not sent now would be read later, when a caller has taken its bytes
		// back: withdraw waits for the flights of busy queues alone.
		if q.flight == nil {
			q.flight = q.load(n, size)
			room.full = room.full || len(q.waiting) > 0 && room.bytes < p.opts.MaxBatchBytes
		}
		q.busy = true
		work = append(work, q.flight)
		left -= q.flight.size
	}
	return work
}

// room is how large a request to one broker may be. A request that is too large for the way there, or for what
// the broker can do, would not get its answer in time and be sent again and again, so the room begins small,
// grows while requests that fill it are answered soon, and shrinks when they take long.
type room struct {
	bytes int  // before compression
	full  bool // a request left something out since the last change
}

const (
	firstRoom = 256 << 10 // a batch of an SDK; seven answers later it is maxRequestBytes
	leastRoom = 64 << 10  // below it the cost of a request counts
)

// room returns the room of a broker. The caller holds mu.
func (p *Producer) room(leader int32) *room {
	r := p.rooms[leader]
	if r == nil {
		r = &room{bytes: firstRoom}
		p.rooms[leader] = r
	}
	return r
}

// adapt changes the room of a broker after a request that took so long. The caller holds mu.
func (p *Producer) adapt(leader int32, took time.Duration) {
	r := p.room(leader)
	switch {
	case took > p.attemptTimeout()/4:
		*r = room{bytes: max(r.bytes/2, leastRoom)}
	case r.full && took < p.attemptTimeout()/8:
		*r = room{bytes: min(r.bytes*2, maxRequestBytes)}
	}
}

// next returns how many of the oldest waiting records make the next flight, at least one, and
// their size.
func (q *queue) next(maxBytes int) (n, size int) {
	for n < len(q.waiting) && (q.limit == 0 || n < q.limit) {
		next := q.waiting[n].size
		if n > 0 && size+next > maxBytes {
			break
		}
		size += next
		n++
	}
	return n, size
}

// load makes a flight of the n oldest waiting records.
func (q *queue) load(n, size int) *flight {
	f := flights.Get().(*flight)
	f.queue = q
	f.size = size
	f.encoded = make(chan struct{})
	f.entries = append(f.entries, q.waiting[:n]...)
	rest := copy(q.waiting, q.waiting[n:])
	clear(q.waiting[rest:])
	q.waiting = q.waiting[:rest]
	return f
}

// send delivers work to one broker, then the records that have gathered meanwhile, until
// none are left.
func (p *Producer) send(leader int32, work []*flight) {
	for len(work) > 0 {
		p.encode(work)
		begun := time.Now()
		answer, err := p.exchange(work)
		work = p.settle(leader, work, time.Since(begun), answer, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retire(leader)
}

// encodeAlone is the size below which another goroutine does not pay: compressing it
// takes some 50 us.
const encodeAlone = 64 << 10

// encode encodes the flights that are not encoded yet, on all processors if they are
// large.
func (p *Producer) encode(work []*flight) {
	var fresh []*flight
	size := 0
	for _, f := range work {
		if len(f.batch) == 0 {
			fresh = append(fresh, f)
			size += f.size
		}
	}
	workers := min(runtime.GOMAXPROCS(0), len(fresh), 1+size/encodeAlone)
	var wg sync.WaitGroup
	for i := 1; i < workers; i++ {
		wg.Go(func() { p.encodeEvery(fresh, i, workers) })
	}
	p.encodeEvery(fresh, 0, workers)
	wg.Wait()
}

// encodeEvery encodes every workers-th flight of work, starting at index first.
func (p *Producer) encodeEvery(work []*flight, first, workers int) {
	e := encoders.Get().(*encoder)
	defer encoders.Put(e)
	e.codec = p.client.codec
	now := time.Now()
	for i := first; i < len(work); i += workers {
		f := work[i]
		f.batch = e.appendBatch(append(f.batch, 0, 0, 0, 0), f.entries, now)
		binary.BigEndian.PutUint32(f.batch, uint32(len(f.batch)-4))
		close(f.encoded)
	}
}

// attemptTimeout bounds one request, so that Config.ProduceTimeout leaves time for a
// second one, perhaps to another leader.
func (p *Producer) attemptTimeout() time.Duration { return p.client.cfg.ProduceTimeout / 2 }

// exchange sends work in one request and waits for the response. It has its own deadline:
// a caller may leave while others still wait for records in the same request.
func (p *Producer) exchange(work []*flight) (*produce.Response, error) {
	timeout := p.attemptTimeout()
	topic := rawproduce.RequestTopic{Topic: p.topic, Partitions: make([]rawproduce.RequestPartition, len(work))}
	size := 0
	for i, f := range work {
		topic.Partitions[i] = rawproduce.RequestPartition{
			Partition: int32(f.queue.partition),
			RecordSet: protocol.RawRecordSet{Reader: bytes.NewReader(f.batch)},
		}
		size += len(f.batch)
	}
	p.metrics.sent.Add(float64(size))
	answer, err := p.client.roundTrip(context.Background(), timeout, &rawproduce.Request{
		Acks:    -1, // all in-sync replicas
		Timeout: int32((timeout * 4 / 5).Milliseconds()),
		Topics:  []rawproduce.RequestTopic{topic},
	})
	if err != nil {
		for _, f := range work {
			f.leaked = true
		}
		return nil, err
	}
	return answer.(*produce.Response), nil
}

var errNoAnswer = errors.New("the response does not contain the partition")

// resultOf returns the broker's error for a partition.
func resultOf(answer *produce.Response, partition int) error {
	for i := range answer.Topics {
		for j := range answer.Topics[i].Partitions {
			if r := &answer.Topics[i].Partitions[j]; int(r.Partition) == partition {
				return codeError(r.ErrorCode, r.ErrorMessage)
			}
		}
	}
	return errNoAnswer
}

// settle reports the outcome of work to the callers and returns the sender's next work.
func (p *Producer) settle(leader int32, work []*flight, took time.Duration, answer *produce.Response, failed error) []*flight {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.adapt(leader, took)
	for _, f := range work {
		err := failed
		if err == nil {
			err = resultOf(answer, f.queue.partition)
		}
		p.land(f, err)
	}
	if answer != nil && answer.ThrottleTimeMs > 0 {
		p.pause(leader, time.Duration(answer.ThrottleTimeMs)*time.Millisecond)
	}
	next := p.take(leader, time.Now())
	p.wake()
	return next
}

// pause stops requests to a broker for a while. A quota is not an error: the broker has
// stored what it acknowledged, and reads nothing more until then, so a request sent
// meanwhile would seem lost. The caller holds mu.
func (p *Producer) pause(leader int32, d time.Duration) {
	p.metrics.throttled.Add(d.Seconds())
	until := time.Now().Add(d)
	if until.Before(p.paused[leader]) {
		return
	}
	p.paused[leader] = until
	time.AfterFunc(time.Until(until), func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.wake()
	})
}

// land finishes one attempt of a flight. The caller holds mu.
func (p *Producer) land(f *flight, err error) {
	q := f.queue
	q.busy = false
	if !tooLarge(err) { // the caller may split the record, and reports a failure with Unstorable
		q.failing.note(err, time.Now())
	}
	switch {
	case err == nil:
		q.limit = 0
		q.end(f, nil)
	case tooLarge(err) && len(f.entries) > 1:
		p.metrics.errors.WithLabelValues(cause(err)).Inc()
		q.split(f)
	case permanent(err):
		p.metrics.errors.WithLabelValues(cause(err)).Inc()
		q.end(f, err)
	case !f.wanted():
		q.end(f, err)
	default:
		if p.client.refreshOnError(err) {
			p.leaders = nil
		}
		p.delay(q, err)
	}
}

// end settles the entries of f, the flight of q.
func (q *queue) end(f *flight, err error) {
	q.flight, q.attempt, q.notBefore = nil, 0, time.Time{}
	for _, e := range f.entries {
		e.settle(err)
	}
	f.release()
}

// split returns the records of f to the front of the queue, for two flights.
func (q *queue) split(f *flight) {
	q.flight = nil
	q.limit = len(f.entries) / 2
	front := make([]entry, 0, len(f.entries)+len(q.waiting))
	for _, e := range f.entries {
		if e.call.gone {
			e.call.window.bytes -= e.size
			continue
		}
		front = append(front, e)
	}
	q.waiting = append(front, q.waiting...)
	f.release()
}

// delay schedules a retry of q after err. The caller holds mu.
func (p *Producer) delay(q *queue, err error) {
	p.metrics.errors.WithLabelValues(cause(err)).Inc()
	q.attempt++
	wait := backoff.Pause(q.attempt)
	q.notBefore = time.Now().Add(wait)
	q.setLastErr(err)
	time.AfterFunc(wait, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.wake()
	})
}

// setLastErr records why the callers still wait. Produce returns it if they give up.
func (q *queue) setLastErr(err error) {
	for _, e := range q.waiting {
		e.call.lastErr = err
	}
	if q.flight != nil {
		for _, e := range q.flight.entries {
			e.call.lastErr = err
		}
	}
}

var errNoLeader = errors.New("the partition does not exist or has no leader")

// find looks up the leaders and starts senders for the partitions that have one.
func (p *Producer) find() {
	leaders, err := p.client.leaders(context.Background(), p.topic)
	if err == nil {
		err = errNoLeader // for the partitions that still have none
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leaders = leaders
	now := time.Now()
	for _, q := range p.queues {
		if q.ready(now) && p.leader(q.partition) < 0 {
			p.lost(q, err)
		}
	}
	p.retire(unknownLeader)
	p.wake()
}

// lost handles a partition without a known leader. The caller holds mu.
func (p *Producer) lost(q *queue, err error) {
	q.failing.note(err, time.Now())
	if !permanent(err) {
		p.client.refreshOnError(err)
		p.delay(q, err)
		return
	}
	p.metrics.errors.WithLabelValues(cause(err)).Inc()
	q.drop(err)
}
