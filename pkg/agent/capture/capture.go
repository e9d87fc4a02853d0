package capture

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/metaflowys/metaflow-server/pkg/agent/cgroup"
	"github.com/metaflowys/metaflow-server/pkg/agent/flow"
	"github.com/metaflowys/metaflow-server/pkg/agent/netns"
	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
)

const (
	// tick is how often last words are taken from the kernel. Longer needs larger receive buffers,
	// shorter costs a system call per namespace each time.
	tick = 200 * time.Millisecond
	// scanInterval is how often namespaces are looked for, at 4 us a process.
	scanInterval = 2 * time.Second
	// batchInterval is how long rows are gathered, batchRows how many are not kept waiting.
	batchInterval = time.Second
	batchRows     = 2000
	// listenInterval is how often a namespace is asked who listens, when a connection's role depends on it.
	listenInterval = time.Second
	// retryInterval is how long a namespace that could not be opened is left alone.
	retryInterval = time.Minute
	// overrunPause is at least between two dumps that were made because last words were lost.
	overrunPause = time.Second
	// defaultReceiveBuffer holds the last words of some 2,000 to 4,000 sockets: ten times what a busy
	// node has in a tick.
	defaultReceiveBuffer = 8 << 20
	// wordsPerTurn bounds what is read of one namespace before the next has its turn.
	wordsPerTurn = 16384
	// clockJump is a difference between the wall clock and the time that passed that is not a clock being
	// slewed.
	clockJump = 500 * time.Millisecond
	// goneMemory is how long it is known whose a namespace was that is gone: rows of it may wait for the consumer.
	goneMemory = 10 * time.Minute
	// flushTimeout is what the consumer has for the last batches.
	flushTimeout = 5 * time.Second
)

// Consumer takes rows.
type Consumer interface {
	// Consume is called by one goroutine, and returns how many rows it took. It must not keep rows after it returned. The
	// others are lost, for the reason in the error; they are counted, and nothing is sent again. When Run is to end, what is under way and what is left has five
	// seconds, then ctx ends.
	Consume(ctx context.Context, rows []flow.Row) (taken int, err error)
}

// Options are for code, not for operators.
type Options struct {
	Logger     *slog.Logger          // nil discards
	Registerer prometheus.Registerer // nil keeps metrics to itself
	// Namespaces says where namespaces are looked for.
	Namespaces netns.Options
	// CgroupRoot is where the host's control groups of version 2 are mounted; empty is
	// /sys/fs/cgroup, or /sys/fs/cgroup/unified where the former is of version 1.
	CgroupRoot string
	// ExcludeLoopback leaves out connections over loopback addresses.
	ExcludeLoopback bool
	// MaxConnections bounds what is remembered, see flow.Config.
	MaxConnections int
	// ReceiveBuffer is how many bytes of last words the kernel keeps for each namespace; 0 is 8 MiB. It takes
	// the memory only while there are that many.
	ReceiveBuffer int
}

// Capture watches connections. Use New.
type Capture struct {
	consumer Consumer
	opts     Options
	log      *slog.Logger
	metrics  *metrics
	changed  chan struct{} // has room for one: the configuration is another
	groups   *groups
	procs    *processes

	mu         sync.Mutex
	cfg        agentconfig.Flow
	exceptions []string
	watched    map[uint64]watched
}

// New returns a stopped Capture.
func New(cfg agentconfig.Flow, consumer Consumer, opts Options) *Capture {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.ReceiveBuffer <= 0 {
		opts.ReceiveBuffer = defaultReceiveBuffer
	}
	return &Capture{
		consumer: consumer,
		opts:     opts,
		log:      opts.Logger,
		metrics:  newMetrics(opts.Registerer),
		changed:  make(chan struct{}, 1),
		groups:   newGroups(opts.CgroupRoot),
		procs:    newProcesses(opts.Namespaces.ProcRoot),
		cfg:      cfg,
		watched:  map[uint64]watched{},
	}
}

// Configure changes the configuration of a Capture that runs, or will. It does not wait for it.
func (c *Capture) Configure(cfg agentconfig.Flow) {
	c.mu.Lock()
	c.cfg = cfg
	c.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default: // it will be looked at
	}
}

// Exceptions are what an operator should know, a sentence each: the privileges that are missing, and what is not
// seen for it. There are none while capture is not enabled.
func (c *Capture) Exceptions() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.exceptions)
}

// Namespace returns what is known of a namespace by the inode that rows have, for some minutes also of one
// that is gone.
func (c *Capture) Namespace(inode uint64) (netns.Namespace, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w, ok := c.watched[inode]
	return w.ns, ok
}

// Owner returns whom the socket of a row belongs to: by its own control group where the kernel said it, else as the
// others of its network namespace. So pods that use the host's network are told from each other, as far as their
// connections were seen alive. It may read the file system; who consumes rows may call it.
func (c *Capture) Owner(r *flow.Row) cgroup.Owner {
	if r.Cgroup != 0 {
		if o := c.groups.owner(r.Cgroup, time.Now()); o != (cgroup.Owner{}) {
			return o
		}
	}
	ns, _ := c.Namespace(r.Namespace)
	return ns.Owner
}

// Process returns the name of the process that has the socket of a row, empty when it is not known. Of connections that
// were too short for any dump it is that of who listens, and nobody at the end that made them. It does no I/O.
func (c *Capture) Process(r *flow.Row) string {
	if r.Inode == 0 {
		return ""
	}
	return c.procs.name(r.Inode)
}

// watched is a namespace that was seen at some time.
type watched struct {
	ns   netns.Namespace
	gone time.Time // zero while it is there
}

// watch keeps what is known of namespaces.
func (c *Capture) watch(found []netns.Namespace, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for inode, w := range c.watched {
		switch {
		case w.gone.IsZero():
			w.gone = now
			c.watched[inode] = w
		case now.Sub(w.gone) > goneMemory:
			delete(c.watched, inode)
		}
	}
	for _, ns := range found {
		c.watched[ns.Inode] = watched{ns: ns}
	}
}

// setExceptions replaces the exceptions, and returns those that are new.
func (c *Capture) setExceptions(sentences []string) (added []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range sentences {
		if !slices.Contains(c.exceptions, s) {
			added = append(added, s)
		}
	}
	c.exceptions = sentences
	return added
}

func (c *Capture) config() agentconfig.Flow {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cfg
}

// Run captures until ctx ends, and returns nil then: where nothing can be captured, Exceptions says why. It may
// be called once.
func (c *Capture) Run(ctx context.Context) error {
	// A batch that the consumer has when ctx ends is as good as the last one: nobody would send it again.
	last, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(flushTimeout, cancel)
		context.AfterFunc(last, func() { timer.Stop() })
	})()

	out := make(chan []flow.Row, 1)
	back := make(chan []flow.Row, 1)
	var wg sync.WaitGroup
	wg.Go(func() { c.procs.run(ctx, func() time.Duration { return c.config().DumpInterval }) })
	wg.Go(func() {
		for rows := range out {
			c.consume(last, rows)
			back <- rows
		}
	})
	l := newLoop(c, out, back)
	l.run(ctx)
	close(out)
	wg.Wait()

	l.stop(context.WithoutCancel(ctx))
	if rows := l.table.Take(nil); len(rows) > 0 {
		c.consume(last, rows)
	}
	return nil
}

func (c *Capture) consume(ctx context.Context, rows []flow.Row) {
	taken, err := c.consumer.Consume(ctx, rows)
	c.metrics.rows.Add(float64(taken))
	if lost := len(rows) - taken; lost > 0 {
		c.metrics.lost.Add(float64(lost))
		c.log.WarnContext(ctx, "flow data was not taken", "rows", lost, "error", err)
	}
}
