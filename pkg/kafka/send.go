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

// flight is a batch of one partition on its way. A sender owns it while the
// queue is busy; in between it lies in the queue.
type flight struct {
	queue   *queue
	entries []entry
	batch   []byte        // encoded, after its length in 4 bytes; empty until then
	encoded chan struct{} // closed when the callers' bytes have been read
	spoilt  bool          // an exchange was given up, which may still read batch
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

// wanted reports whether somebody still waits for f.
func (f *flight) wanted() bool {
	for i := range f.entries {
		if !f.entries[i].call.gone {
			return true
		}
	}
	return false
}

// Memory that flights leave behind. What is not used for a while is the
// garbage collector's.
var (
	flights  = sync.Pool{New: func() any { return new(flight) }}
	encoders = sync.Pool{New: func() any { return new(encoder) }}
)

// release gives f back, unless an exchange may still read from it.
func (f *flight) release() {
	if f.spoilt {
		return
	}
	clear(f.entries)
	*f = flight{entries: f.entries[:0], batch: f.batch[:0]}
	flights.Put(f)
}

// take makes busy what is ready for one broker, and returns it. The caller
// holds mu.
func (p *Producer) take(leader int32, now time.Time) []*flight {
	var work []*flight
	if now.Before(p.paused[leader]) {
		return nil
	}
	room := maxRequestBytes
	for _, q := range p.queues {
		if room <= 0 || !q.ready(now) || p.leader(q.partition) != leader {
			continue
		}
		if q.flight == nil {
			q.flight = q.load(p.opts.MaxBatchBytes)
		}
		q.busy = true
		work = append(work, q.flight)
		room -= p.opts.MaxBatchBytes
	}
	return work
}

// load makes a flight of the records that have waited longest, of one at least.
func (q *queue) load(maxBytes int) *flight {
	n, size := 0, 0
	for n < len(q.waiting) && (q.limit == 0 || n < q.limit) {
		size += q.waiting[n].out.size()
		if n > 0 && size > maxBytes {
			break
		}
		n++
	}
	f := flights.Get().(*flight)
	f.queue = q
	f.encoded = make(chan struct{})
	f.entries = append(f.entries, q.waiting[:n]...)
	rest := copy(q.waiting, q.waiting[n:])
	clear(q.waiting[rest:])
	q.waiting = q.waiting[:rest]
	return f
}

// send delivers work to one broker, and what has gathered meanwhile, until
// there is nothing more.
func (p *Producer) send(leader int32, work []*flight) {
	for len(work) > 0 {
		p.encode(work)
		answer, err := p.exchange(work)
		work = p.settle(leader, work, answer, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retire(leader)
}

// encodeAlone is how many bytes are not worth another goroutine: compressing
// them takes some 50 us.
const encodeAlone = 64 << 10

// encode encodes what is not encoded yet, on all processors when it is much.
func (p *Producer) encode(work []*flight) {
	var fresh []*flight
	size := 0
	for _, f := range work {
		if len(f.batch) == 0 {
			fresh = append(fresh, f)
			for i := range f.entries {
				size += f.entries[i].out.size()
			}
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

// encodeEvery encodes every workers-th of work, beginning with the first-th.
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

// attemptTimeout bounds one request, so that within Config.ProduceTimeout there
// is a second one, perhaps to another leader.
func (p *Producer) attemptTimeout() time.Duration { return p.client.cfg.ProduceTimeout / 2 }

// exchange sends work in one request and waits for the answer. It runs on time
// of its own: the callers may leave, others whose records travel along do not.
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
			f.spoilt = true
		}
		return nil, err
	}
	return answer.(*produce.Response), nil
}

var errNoAnswer = errors.New("the answer does not name the partition")

// resultOf finds what the broker said of a partition.
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

// settle tells the callers what became of work, and returns what the sender
// does next.
func (p *Producer) settle(leader int32, work []*flight, answer *produce.Response, failed error) []*flight {
	p.mu.Lock()
	defer p.mu.Unlock()
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

// pause sends nothing to a broker for a while. A quota is no error: the broker has
// stored what it answered for, and reads nothing more until then, so that a request sent
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

// land ends one attempt of a flight. The caller holds mu.
func (p *Producer) land(f *flight, err error) {
	q := f.queue
	q.busy = false
	if !tooLarge(err) { // whether that is a failure is for the caller to say, who may split the record
		q.failing.note(err, time.Now())
	}
	switch {
	case err == nil:
		q.limit = 0
		q.end(f, nil)
	case tooLarge(err) && len(f.entries) > 1:
		p.metrics.errors.WithLabelValues(cause(err)).Inc()
		q.split(f)
	case hopeless(err):
		p.metrics.errors.WithLabelValues(cause(err)).Inc()
		q.end(f, err)
	case !f.wanted():
		q.end(f, err)
	default:
		if p.client.suspect(err) {
			p.leaders = nil
		}
		p.delay(q, err)
	}
}

// end settles the entries of f, which is the queue's.
func (q *queue) end(f *flight, err error) {
	q.flight, q.attempt, q.notBefore = nil, 0, time.Time{}
	for _, e := range f.entries {
		e.settle(err)
	}
	f.release()
}

// split puts the records of f back to the front of the queue, for two flights.
func (q *queue) split(f *flight) {
	q.flight = nil
	q.limit = len(f.entries) / 2
	front := make([]entry, 0, len(f.entries)+len(q.waiting))
	for _, e := range f.entries {
		if !e.call.gone {
			front = append(front, e)
		}
	}
	q.waiting = append(front, q.waiting...)
	f.release()
}

// delay lets q try again a little later, because of err. The caller holds mu.
func (p *Producer) delay(q *queue, err error) {
	p.metrics.errors.WithLabelValues(cause(err)).Inc()
	wait := backoff(q.attempt)
	q.attempt++
	q.notBefore = time.Now().Add(wait)
	q.trouble(err)
	time.AfterFunc(wait, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.wake()
	})
}

// trouble tells the callers why they still wait, for the case that they give up.
func (q *queue) trouble(err error) {
	for _, e := range q.waiting {
		e.call.trouble = err
	}
	if q.flight != nil {
		for _, e := range q.flight.entries {
			e.call.trouble = err
		}
	}
}

var errNoLeader = errors.New("the topic has no such partition, or it has no leader")

// find looks the leaders up, and starts senders for the partitions that have one.
func (p *Producer) find() {
	leaders, err := p.client.leaders(context.Background(), p.topic)
	if err == nil {
		err = errNoLeader // of those that still have none
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

// lost handles a partition whose leader was not found. The caller holds mu.
func (p *Producer) lost(q *queue, err error) {
	q.failing.note(err, time.Now())
	if !hopeless(err) {
		p.client.suspect(err)
		p.delay(q, err)
		return
	}
	p.metrics.errors.WithLabelValues(cause(err)).Inc()
	q.drop(err)
}
