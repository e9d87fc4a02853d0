package kafka

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/fault"
)

// ProducerOptions are set by code.
type ProducerOptions struct {
	// MaxBatchBytes bounds one batch of a partition before compression; a larger record
	// travels alone. It should not exceed the topic's max.message.bytes, in case the
	// records do not compress. 0 means 1,000,000, below the brokers' default of
	// 1,048,588.
	MaxBatchBytes int
	// InFlight bounds the concurrent requests to one broker. One is enough while all
	// partitions are busy, because a request carries a batch of each; more keep one slow
	// partition from delaying the others. 0 means 4.
	InFlight int
}

const (
	defaultMaxBatchBytes = 1_000_000
	defaultInFlight      = 4
	// maxRequestBytes bounds a request before compression, well below the brokers'
	// socket.request.max.bytes of 100 MiB.
	maxRequestBytes = 32 << 20
)

// Producer writes records to one topic. Create it with Client.NewProducer. Its methods
// are safe for concurrent use.
//
// There is no linger time: records for a partition wait only while it has a batch in
// flight, and then go out as one batch.
type Producer struct {
	client  *Client
	topic   string
	opts    ProducerOptions
	metrics topicMetrics

	mu      sync.Mutex
	running bool
	stopped bool
	idle    *sync.Cond          // signaled when a call or a sender ends
	calls   int                 // of Produce, in progress
	queues  []*queue            // by partition; nil if nothing was ever produced for it
	leaders []int32             // by partition; nil if they have to be looked up
	senders map[int32]int       // running senders by broker
	paused  map[int32]time.Time // by broker: no requests until then, because of a quota
	rooms   map[int32]*room     // by broker
	turn    int                 // partition whose queue is asked first
	window  window
	state   topicState // as last seen; see layout.go
	changed time.Time  // when state last changed
	lookup  failure    // of refreshing the topic
}

// queue holds the waiting records of one partition.
type queue struct {
	partition int
	waiting   []entry
	flight    *flight // not acknowledged yet; nil for none
	busy      bool    // a sender owns the flight
	limit     int     // maximum records of the next flight after one was too large; 0 means any number
	attempt   int     // of sending the flight or finding the leader
	notBefore time.Time
	failing   failure
}

// entry is one record and the call that waits for it. The record belongs to the caller:
// it may be read only while the call is not gone.
type entry struct {
	out  *Outgoing
	call *call
	size int // of out
}

// call is one call of Produce.
type call struct {
	window  *window // of the Producer
	begun   time.Time
	bytes   int           // that waited once this call did
	left    int           // entries not settled yet
	gone    bool          // the caller has returned
	err     error         // first permanent error
	large   []*Outgoing   // records that are too large for the topic by themselves
	refusal error         // error of the last of them
	lastErr error         // last retryable error
	done    chan struct{} // closed when left is 0
}

// NewProducer returns a Producer that sends nothing until Run.
func (c *Client) NewProducer(topic string, opts ProducerOptions) *Producer {
	if opts.MaxBatchBytes <= 0 {
		opts.MaxBatchBytes = defaultMaxBatchBytes
	}
	if opts.InFlight <= 0 {
		opts.InFlight = defaultInFlight
	}
	p := &Producer{
		client: c, topic: topic, opts: opts, metrics: c.metrics.ofTopic(topic),
		senders: make(map[int32]int), paused: make(map[int32]time.Time), rooms: make(map[int32]*room),
		window: window{limit: firstWindow},
	}
	p.idle = sync.NewCond(&p.mu)
	return p
}

// Run sends the records of Produce. When ctx ends, new calls of Produce fail with
// ErrStopped, calls in progress continue within their own context and
// Config.ProduceTimeout, and then Run returns nil.
func (p *Producer) Run(ctx context.Context) error {
	p.mu.Lock()
	p.running = true
	p.wake()
	p.mu.Unlock()

	p.watch(ctx)

	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	for p.calls > 0 || len(p.senders) > 0 {
		p.idle.Wait()
	}
	return nil
}

// Produce returns nil when all in-sync replicas have acknowledged all records. It retries
// until ctx ends, for Config.ProduceTimeout at most.
//
// A BehindError means that Kafka takes records of a partition more slowly than they come. Nothing
// of the batch was sent.
//
// A TooLargeError lists the records that are too large for the topic; all others are
// stored. After any other error each record may have been stored once, twice or not at
// all. Every other error has class fault.Retryable: Kafka refuses records because of
// configuration, policy, clocks or permissions, and an operator can change those.
//
// Produce owns the batch and all its bytes until it returns. Afterwards they belong to
// the caller again, even after an error: requests still in flight use a copy.
func (p *Producer) Produce(ctx context.Context, batch []Outgoing) error {
	if len(batch) == 0 {
		return nil
	}
	begun := time.Now()
	err := p.produce(ctx, batch, begun)
	p.metrics.produced(batch, time.Since(begun), err)
	if err != nil {
		return fmt.Errorf("produce %d records to %s: %w", len(batch), p.topic, err)
	}
	return nil
}

func (p *Producer) produce(ctx context.Context, batch []Outgoing, begun time.Time) error {
	for i := range batch {
		if n := batch[i].Partition; n < 0 || n > maxPartition {
			return fmt.Errorf("there is no partition %d", n)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, p.client.cfg.ProduceTimeout)
	defer cancel()
	c := &call{window: &p.window, begun: begun, left: len(batch), done: make(chan struct{})}
	if err := p.enqueue(c, batch); err != nil {
		return err
	}
	defer p.leave()
	select {
	case <-c.done:
		p.mu.Lock()
		p.window.ended(begun, time.Now(), c.bytes, p.client.cfg.ProduceTimeout)
		p.mu.Unlock()
		return c.result(batch)
	case <-ctx.Done():
		return p.withdraw(ctx, c, batch)
	}
}

// result is the outcome of batch once all of it is settled.
func (c *call) result(batch []Outgoing) error {
	if c.err != nil || len(c.large) == 0 {
		return c.err
	}
	refused := &TooLargeError{Cause: c.refusal}
	for i := range batch {
		if slices.Contains(c.large, &batch[i]) {
			refused.Records = append(refused.Records, i)
		}
	}
	return refused
}

// maxPartition keeps an invalid partition number from allocating a huge slice. No Kafka
// topic has that many partitions.
const maxPartition = 1 << 20

func (p *Producer) enqueue(c *call, batch []Outgoing) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return ErrStopped
	}
	if err := p.behind(batch, c.begun); err != nil {
		p.metrics.behind.Inc()
		return fault.As(fault.Overload, err)
	}
	p.calls++
	for i := range batch {
		q := p.queue(batch[i].Partition)
		e := entry{out: &batch[i], call: c, size: batch[i].size()}
		q.waiting = append(q.waiting, e)
		p.window.bytes += e.size
	}
	c.bytes = p.window.bytes
	p.wake()
	return nil
}

// behind returns a BehindError if the window does not admit a batch, or if the oldest waiting record of one
// of its partitions has waited for half of Config.ProduceTimeout. The caller holds mu.
func (p *Producer) behind(batch []Outgoing, now time.Time) error {
	for i := range batch {
		q := p.queue(batch[i].Partition)
		if len(q.waiting) == 0 {
			continue
		}
		oldest := q.waiting[0].call
		if age := now.Sub(oldest.begun); age > p.client.cfg.ProduceTimeout/2 {
			return &BehindError{fmt.Sprintf("records of partition %d wait for %s", q.partition, age.Round(time.Millisecond)), oldest.lastErr}
		}
	}
	if !p.window.admits() {
		return &BehindError{Reason: fmt.Sprintf("%d bytes wait, and more would wait too long", p.window.bytes)}
	}
	return nil
}

func (p *Producer) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls--
	p.idle.Broadcast()
}

// queue returns the queue of a partition. The caller holds mu.
func (p *Producer) queue(partition int) *queue {
	for len(p.queues) <= partition {
		p.queues = append(p.queues, nil)
	}
	if p.queues[partition] == nil {
		p.queues[partition] = &queue{partition: partition}
	}
	return p.queues[partition]
}

// withdraw removes the unsent records of c, and waits until no sender reads the caller's
// bytes any more.
func (p *Producer) withdraw(ctx context.Context, c *call, batch []Outgoing) error {
	p.mu.Lock()
	if c.left == 0 { // settled in the same moment
		p.mu.Unlock()
		return c.result(batch)
	}
	c.gone = true
	p.window.ended(c.begun, time.Now(), c.bytes, p.client.cfg.ProduceTimeout)
	var encoding []<-chan struct{}
	for _, q := range p.queues {
		if q == nil {
			continue
		}
		q.waiting = forget(q.waiting, c)
		switch {
		case q.busy && q.flight.has(c):
			encoding = append(encoding, q.flight.encoded)
		case !q.busy && q.flight != nil && !q.flight.wanted():
			q.end(q.flight, nil) // no caller waits for the outcome
		}
	}
	err, lastErr := context.Cause(ctx), c.lastErr
	p.mu.Unlock()
	for _, encoded := range encoding {
		<-encoded // takes no longer than compressing one batch
	}
	if lastErr != nil {
		return fmt.Errorf("%w, after: %w", err, lastErr)
	}
	return err
}

// forget removes the entries of c.
func forget(entries []entry, c *call) []entry {
	kept := entries[:0]
	for _, e := range entries {
		if e.call != c {
			kept = append(kept, e)
		} else {
			c.window.bytes -= e.size
		}
	}
	clear(entries[len(kept):])
	return kept
}

// settle ends e with err, which is nil for success. The caller holds mu.
func (e entry) settle(err error) {
	c := e.call
	c.window.bytes -= e.size
	switch {
	case tooLarge(err):
		c.large, c.refusal = append(c.large, e.out), err
	case c.err == nil:
		c.err = err
	}
	if c.left--; c.left == 0 {
		close(c.done)
	}
}

// ready reports whether a sender could take q now.
func (q *queue) ready(now time.Time) bool {
	return q != nil && !q.busy && (q.flight != nil || len(q.waiting) > 0) && !now.Before(q.notBefore)
}

// unknownLeader stands for the broker of partitions whose leader has to be looked up.
const unknownLeader = -1

// leader returns the broker that leads a partition. The caller holds mu.
func (p *Producer) leader(partition int) int32 {
	if partition < len(p.leaders) {
		return p.leaders[partition]
	}
	return unknownLeader
}

// wake starts a sender for each broker that has ready queues and fewer than InFlight
// senders. The caller holds mu.
//
// No wake-up is lost: a sender looks for more work under mu before it ends, and code that
// adds work calls wake under mu.
func (p *Producer) wake() {
	if !p.running {
		return
	}
	now := time.Now()
	for _, q := range p.queues {
		if !q.ready(now) {
			continue
		}
		leader := p.leader(q.partition)
		switch {
		case leader == unknownLeader && p.senders[leader] == 0:
			p.senders[leader]++
			go p.find()
		case leader != unknownLeader && p.senders[leader] < p.opts.InFlight && !now.Before(p.paused[leader]):
			p.senders[leader]++
			go p.send(leader, p.take(leader, now))
		}
	}
}

// retire counts a finished sender. The caller holds mu.
func (p *Producer) retire(leader int32) {
	if p.senders[leader]--; p.senders[leader] == 0 {
		delete(p.senders, leader)
	}
	p.idle.Broadcast()
}
