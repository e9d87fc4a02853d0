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
	// tick is the time between two reads of destroy notifications. A longer
	// tick needs larger receive buffers; a shorter one costs a system call per
	// namespace each time.
	tick = 200 * time.Millisecond
	// scanInterval is the time between two scans for namespaces, so that those
	// that live a second are found. A scan takes 4 us a process; the interval is
	// at least scanCost times as long, but not longer than maxScanInterval.
	scanInterval    = 500 * time.Millisecond
	maxScanInterval = 2 * time.Second
	scanCost        = 200
	// batchInterval is the longest that rows wait for a batch to fill;
	// batchRows rows make a batch at once.
	batchInterval = time.Second
	batchRows     = 2000
	// listenInterval is the least time between two dumps of a namespace's
	// listening sockets, made when a connection's role depends on them.
	listenInterval = time.Second
	// retryInterval is the time until a namespace that could not be opened is
	// tried again.
	retryInterval = time.Minute
	// overrunPause is the least time between two dumps that follow overruns.
	overrunPause = time.Second
	// defaultReceiveBuffer holds the destroy notifications of 2,000 to 4,000
	// sockets, ten times what a busy node produces in a tick.
	defaultReceiveBuffer = 8 << 20
	// destroyedPerTurn bounds the notifications read from one namespace before
	// the next has its turn.
	destroyedPerTurn = 16384
	// clockJump is the difference between the wall clock and the monotonic
	// clock beyond which the clock was stepped, not slewed.
	clockJump = 500 * time.Millisecond
	// goneMemory is how long Namespace knows a namespace that is gone: rows of
	// it may still wait for the consumer.
	goneMemory = 10 * time.Minute
	// flushTimeout bounds the delivery of the last batches after Run's context
	// ends.
	flushTimeout = 5 * time.Second
)

// Consumer receives rows.
type Consumer interface {
	// Consume stores rows and returns how many it stored. The others are lost
	// for the reason in the error: Capture counts them and does not retry.
	// Consume must not keep rows after it returns. One goroutine calls it. When
	// Run's context ends, the batches in flight and those left have five
	// seconds before ctx ends.
	Consume(ctx context.Context, rows []flow.Row) (taken int, err error)
}

// Options configure a Capture from code, not by operators.
type Options struct {
	Logger     *slog.Logger          // nil discards
	Registerer prometheus.Registerer // nil does not expose metrics
	// Namespaces controls where namespaces are looked for.
	Namespaces netns.Options
	// CgroupRoot is where the host's control groups of version 2 are mounted.
	// If empty, it is /sys/fs/cgroup, or /sys/fs/cgroup/unified where the
	// former is version 1.
	CgroupRoot string
	// ExcludeLoopback drops connections over loopback addresses.
	ExcludeLoopback bool
	// MaxConnections bounds the connections remembered, see flow.Config.
	MaxConnections int
	// ReceiveBuffer bounds the bytes of destroy notifications that the kernel
	// queues for each namespace; 0 means 8 MiB. The kernel allocates the memory
	// only as they queue.
	ReceiveBuffer int
}

// Capture watches connections. Use New.
type Capture struct {
	consumer Consumer
	opts     Options
	log      *slog.Logger
	metrics  *metrics
	changed  chan struct{} // holds one signal: cfg changed
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

// Configure replaces the configuration. It may be called before and during Run,
// and does not wait for the change to take effect.
func (c *Capture) Configure(cfg agentconfig.Flow) {
	c.mu.Lock()
	c.cfg = cfg
	c.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default: // a signal is already pending
	}
}

// Exceptions returns sentences for an operator, each naming a missing privilege
// and what capture does not see without it. It is empty while capture is
// disabled.
func (c *Capture) Exceptions() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.exceptions)
}

// namespaceOf returns the namespace with the inode found in rows. It also knows
// namespaces that went away within the last minutes.
func (c *Capture) namespaceOf(inode uint64) (netns.Namespace, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w, ok := c.watched[inode]
	return w.ns, ok
}

// Owner returns the owner of a row's socket: by the socket's control group if
// the kernel sent it, else the owner of its network namespace. So pods that use
// the host's network can be told apart, as far as dumps showed their
// connections. Owner may read the file system. It is safe for concurrent use.
func (c *Capture) Owner(r *flow.Row) cgroup.Owner {
	if r.Cgroup != 0 {
		if o := c.groups.owner(r.Cgroup, time.Now()); o != (cgroup.Owner{}) {
			return o
		}
	}
	ns, _ := c.namespaceOf(r.Namespace)
	return ns.Owner
}

// Process returns the name of the process that holds a row's socket, or "" if
// it is unknown. For connections that no dump showed it returns the listener's
// process at the server's end; at the client's end it returns the name of all
// processes of the network namespace if they share one, as in a pod with one
// program. It does no I/O.
func (c *Capture) Process(r *flow.Row) string {
	if r.Inode != 0 {
		return c.procs.name(r.Inode)
	}
	if r.Role != flow.RoleClient {
		return ""
	}
	name := c.procs.soleName(r.Namespace)
	if name == "" {
		c.procs.requestScanFor(r.Namespace)
	}
	return name
}

// watched is a namespace that some scan found.
type watched struct {
	ns   netns.Namespace
	gone time.Time // zero while it exists
}

// watch records the namespaces of a scan, and forgets old ones.
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

// setExceptions replaces the exceptions and returns the new ones.
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

// Run captures until ctx ends, then returns nil. If it cannot capture anything,
// it keeps running and Exceptions gives the reason. Call it only once.
func (c *Capture) Run(ctx context.Context) error {
	// The consumer may hold a batch when ctx ends. Nothing would retry it, so
	// it has the same deadline as the last one.
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
		c.log.WarnContext(ctx, "flow data lost", slog.Int("rows", lost), slog.Any("error", err))
	}
}
