package spool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// ErrFull means that there is no room: the bound is reached or the disk is
// full.
var ErrFull = errors.New("spool is full")

// ErrClosed is returned by calls after Close.
var ErrClosed = errors.New("spool is closed")

// Config holds the location and bound of a spool.
type Config struct {
	Dir      string // used by the spool alone; created if missing
	MaxBytes int64  // bound of the files; see SetMaxBytes
}

// leastMaxBytes leaves room for a few segments.
const leastMaxBytes = 4 * leastSegment

// Validate reports all problems.
func (c Config) Validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("dir: required"))
	}
	if c.MaxBytes < leastMaxBytes {
		errs = append(errs, fmt.Errorf("max_bytes: %d is less than %d", c.MaxBytes, leastMaxBytes))
	}
	return errors.Join(errs...)
}

// Options are set by code. The zero value is usable.
type Options struct {
	Logger     *slog.Logger          // nil logs nothing
	Registerer prometheus.Registerer // nil registers nothing
}

// Entry is one request.
type Entry struct {
	Body     []byte
	Resend   bool      // a server may already have it
	Received time.Time // nanosecond precision, no time zone

	// Tries and Since are for the caller to count and date returns. They are
	// not stored on disk.
	Tries int
	Since time.Time

	at position // set by Next
}

// Spool is the queue. Use Open. Its methods are safe for concurrent use.
type Spool struct {
	dir     *os.File // holds the lock
	log     *slog.Logger
	metrics *metrics

	syncing chan struct{} // holds one token during a sync; taken before mu

	reading sync.Mutex // serializes reads; taken before mu
	source  *segment   // the segment being read
	input   *os.File   // source's file
	scanner *scanner   // reads input

	mu       sync.Mutex
	closed   bool
	maxBytes int64
	bytes    int64      // bytes of all segments
	entries  int        // entries durable and not done
	segments []*segment // sorted by number
	next     uint64     // number of the next segment to create
	active   *segment   // the segment being written, nil if there is none
	unsynced []*segment
	batch    *batch // appends that wait for the next sync
	out      map[position]Entry
	returned []Entry // returned entries, sorted by position
	wake     chan struct{}
	cursor   *os.File // nil if it cannot be written
	unusable uint64   // number of the first unusable segment, 0 if there is none
}

// batch is the set of appends that share a sync.
type batch struct {
	done chan struct{} // closed after the sync
}

// Open opens the spool in cfg.Dir and repairs what a crash left. No other
// process may have the directory open. Only an unusable directory is an error.
func Open(cfg Config, opts Options) (_ *Spool, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("spool config: %w", err)
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create spool: %w", err)
	}
	dir, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	s := &Spool{
		dir:      dir,
		log:      opts.Logger,
		syncing:  make(chan struct{}, 1),
		maxBytes: cfg.MaxBytes,
		out:      make(map[position]Entry),
		wake:     make(chan struct{}),
	}
	s.metrics = newMetrics(opts.Registerer, s)
	defer func() {
		if err != nil {
			dir.Close()
			if s.cursor != nil {
				s.cursor.Close()
			}
		}
	}()
	if err := s.load(); err != nil {
		return nil, err
	}
	return s, nil
}

func lockDir(path string) (*os.File, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		dir.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("open spool: %s is in use by another process", path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return dir, nil
}

// load loads the segments. Open calls it before the Spool is shared.
func (s *Spool) load() error {
	names, err := s.dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("list spool: %w", err)
	}
	var numbers []uint64
	for _, name := range names {
		if n, ok := segmentNumber(name); ok {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	last, file, err := openCursor(s.dir.Name())
	if err != nil {
		s.log.Warn("cannot write spool cursor; done entries may be sent again after a restart", slog.Any("error", err))
	}
	s.cursor = file
	s.next = max(last.done.segment, last.handed.segment, 1) - 1
	for _, n := range numbers {
		s.next = max(s.next, n)
		s.adopt(n, last)
	}
	s.next++
	if s.entries > 0 {
		s.log.Info("spool holds entries from an earlier run", slog.Int("entries", s.entries), slog.Int64("bytes", s.bytes), slog.Time("oldest", s.Oldest()))
	}
	return nil
}

// adopt loads an existing segment, and marks the entries before last.done as
// done.
func (s *Spool) adopt(number uint64, last cursor) {
	g, cut, err := openSegment(s.dir.Name(), number)
	if err != nil {
		if s.unusable == 0 {
			s.unusable = number
		}
		s.log.Error("cannot use spool segment, leaving it alone", slog.String("file", segmentPath(s.dir.Name(), number)), slog.Any("error", err))
		return
	}
	if cut > 0 {
		s.metrics.damaged.Add(float64(cut))
		s.log.Warn("cut off the damaged end of a spool segment", slog.String("file", g.path),
			slog.Int64("bytes", cut), slog.Uint64("entries_left", uint64(g.written)))
	}
	g.before = math.MaxUint32
	switch {
	case last.clean && number > last.handed.segment:
		g.before = 0
	case last.clean && number == last.handed.segment:
		g.before = last.handed.index
	}
	switch {
	case number < last.done.segment:
		g.pass(g.durable)
	case number == last.done.segment:
		g.pass(min(last.done.index, g.durable))
	}
	s.segments = append(s.segments, g)
	s.bytes += g.size
	s.entries += int(g.durable - g.low)
	if g.low == g.durable {
		g.read = true
		s.log.Debug("spool segment is done", slog.String("file", g.path))
		if err := s.sweep(); err != nil {
			s.log.Warn("cannot remove finished spool segment", slog.String("file", g.path), slog.Any("error", err))
		}
	}
}

// Append stores e and returns once it is on stable storage. It does not keep
// e.Body. After an error e is not in the spool. ctx matters only until the
// write starts.
func (s *Spool) Append(ctx context.Context, e Entry) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(e.Body) > maxLength {
		return fmt.Errorf("append %d bytes: more than the maximum of %d", len(e.Body), maxLength)
	}
	err := s.append(e)
	switch {
	case err == nil:
		s.metrics.appended.Inc()
		return nil
	case diskFull(err):
		err = fmt.Errorf("%w: %w", ErrFull, err)
	}
	if errors.Is(err, ErrFull) {
		s.metrics.full.Inc()
	}
	return fmt.Errorf("append %d bytes: %w", len(e.Body), err)
}

func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

func (s *Spool) append(e Entry) error {
	h := header{length: uint32(len(e.Body)), received: e.Received.UnixNano(), bodyCRC: crc(e.Body)}
	if e.Resend {
		h.flags |= flagResend
	}
	s.mu.Lock()
	g, err := s.write(h, e.Body)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	index := g.written - 1
	if s.batch == nil {
		s.batch = &batch{done: make(chan struct{})}
	}
	b := s.batch
	s.mu.Unlock()

	select {
	case <-b.done: // another Append synced the batch
	case s.syncing <- struct{}{}:
		s.sync(b)
		<-s.syncing
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if index < g.durable {
		return nil
	}
	return g.failed
}

// write appends an entry to the active segment without a sync. The caller holds
// mu.
func (s *Spool) write(h header, body []byte) (*segment, error) {
	if s.closed {
		return nil, ErrClosed
	}
	if s.bytes+h.size()+headerSize > s.maxBytes { // include a footer
		return nil, fmt.Errorf("%w: %d of %d bytes used", ErrFull, s.bytes, s.maxBytes)
	}
	if s.active != nil && s.active.size > 0 && s.active.size+h.size() > segmentSize(s.maxBytes) {
		s.seal(s.active)
	}
	if s.active == nil {
		g, err := createSegment(s.dir, s.next)
		if err != nil {
			return nil, err
		}
		s.next++
		s.segments = append(s.segments, g)
		s.active = g
	}
	g := s.active
	h.index = g.written
	head := h.encode(g.number)
	_, err := g.file.WriteAt(head[:], g.size)
	if err == nil {
		_, err = g.file.WriteAt(body, g.size+headerSize)
	}
	if err != nil {
		s.undo(g, err)
		return nil, err
	}
	if g.written == 0 {
		g.first = time.Unix(0, h.received)
	}
	g.written++
	g.size += h.size()
	s.bytes += h.size()
	if !slices.Contains(s.unsynced, g) {
		s.unsynced = append(s.unsynced, g)
	}
	return g, nil
}

// undo removes what a failed write left behind. The caller holds mu.
func (s *Spool) undo(g *segment, cause error) {
	if g.written == 0 {
		// The file is empty, and on a full disk it may hold the last block.
		s.drop(g)
		return
	}
	err := g.file.Truncate(g.size)
	if err != nil {
		// The remains are never read, and the next start cuts them off.
		s.log.Warn("cannot remove partial entry from spool segment", slog.String("file", g.path), slog.Any("error", err), slog.Any("cause", cause))
	}
	if err != nil || !diskFull(cause) {
		s.seal(g) // another file may work
	}
}

// drop removes a segment of which no entry was acknowledged. The caller holds
// mu.
func (s *Spool) drop(g *segment) {
	g.sealed = true
	g.file.Close()
	g.file = nil
	if s.active == g {
		s.active = nil
	}
	s.segments = slices.DeleteFunc(s.segments, func(o *segment) bool { return o == g })
	s.bytes -= g.size
	if err := os.Remove(g.path); err != nil {
		s.log.Warn("cannot remove empty spool segment", slog.String("file", g.path), slog.Any("error", err))
	}
}

// seal ends a segment; its file is closed once it is synced. The caller holds
// mu.
func (s *Spool) seal(g *segment) {
	if g.sealed {
		return
	}
	g.seal()
	g.size += headerSize // counted even if the footer did not fit
	s.bytes += headerSize
	if s.active == g {
		s.active = nil
	}
	s.release(g)
	s.awake() // wakes readers at its end
}

// sync makes everything written so far durable, for all appends of b. The
// caller holds the token of syncing.
func (s *Spool) sync(b *batch) {
	s.mu.Lock()
	if s.batch != b { // another Append synced it before we got the token
		s.mu.Unlock()
		return
	}
	s.batch = nil
	work := s.unsynced
	s.unsynced = nil
	type end struct {
		size    int64
		written uint32
	}
	ends := make([]end, len(work))
	for i, g := range work {
		ends[i] = end{g.size, g.written}
		g.syncing = true
	}
	s.mu.Unlock()

	errs := make([]error, len(work))
	for i, g := range work {
		start := time.Now()
		errs[i] = g.file.Sync()
		s.metrics.syncs.Observe(time.Since(start).Seconds())
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	for i, g := range work {
		g.syncing = false
		if errs[i] != nil {
			s.fail(g, errs[i])
			continue
		}
		s.entries += int(ends[i].written - g.durable)
		g.durable, g.durableSize = ends[i].written, ends[i].size
		s.release(g)
	}
	close(b.done)
	s.awake()
}

// fail discards everything in g that is not durable, including later writes:
// after a failed sync the system may have dropped any of it. The caller holds
// mu.
func (s *Spool) fail(g *segment, cause error) {
	s.log.Error("cannot sync spool segment", slog.String("file", g.path), slog.Any("error", cause))
	g.failed = fmt.Errorf("sync spool: %w", cause)
	s.unsynced = slices.DeleteFunc(s.unsynced, func(o *segment) bool { return o == g })
	if g.durable == 0 {
		s.drop(g)
		return
	}
	if err := os.Truncate(g.path, g.durableSize); err != nil {
		s.log.Warn("cannot remove unacknowledged entries from spool segment", slog.String("file", g.path), slog.Any("error", err))
	}
	s.bytes -= g.size - g.durableSize
	g.size, g.written = g.durableSize, g.durable
	g.sealed = true
	if s.active == g {
		s.active = nil
	}
	s.release(g)
}

// release closes the file of a sealed segment that needs no sync. The caller
// holds mu.
func (s *Spool) release(g *segment) {
	if g.file == nil || !g.sealed || g.syncing || slices.Contains(s.unsynced, g) {
		return
	}
	g.file.Close()
	g.file = nil
}

// awake wakes all calls of Next. The caller holds mu.
func (s *Spool) awake() {
	close(s.wake)
	s.wake = make(chan struct{})
}

// SetMaxBytes sets the bound. A bound below the current size refuses new
// entries until enough are done; it removes nothing.
func (s *Spool) SetMaxBytes(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.maxBytes = max(n, leastMaxBytes)
}

func (s *Spool) maxBytesNow() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.maxBytes
}

// Len returns the number of entries that are not done, including those handed
// out.
func (s *Spool) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entries
}

// Bytes returns the size of all segment files.
func (s *Spool) Bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

// Oldest returns when the oldest entry was received, to the precision of a
// segment, or the zero time if the spool is empty.
func (s *Spool) Oldest() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	var oldest time.Time
	older := func(t time.Time) {
		if oldest.IsZero() || t.Before(oldest) {
			oldest = t
		}
	}
	for _, e := range s.out {
		older(e.Received)
	}
	for _, e := range s.returned {
		older(e.Received)
	}
	for _, g := range s.segments {
		if oldest.IsZero() && g.handed < g.durable {
			older(g.first)
		}
	}
	return oldest
}

// Close wakes all blocked calls and records what was handed out. Entries that
// are not done are handed out again, with Resend set if they were handed out
// before, when the spool is next opened.
func (s *Spool) Close() error {
	s.syncing <- struct{}{}
	defer func() { <-s.syncing }()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.awake()
	b := s.batch
	s.mu.Unlock()
	if b != nil {
		s.sync(b)
	}

	s.reading.Lock()
	defer s.reading.Unlock()
	s.leave()
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.active; g != nil {
		s.seal(g)
	}
	return errors.Join(s.remember(true), s.dir.Close())
}

// remember writes the cursor. The caller holds mu.
func (s *Spool) remember(clean bool) error {
	if s.cursor == nil {
		return nil
	}
	c := cursor{clean: clean, done: position{segment: s.next}}
	if len(s.segments) > 0 {
		c.done = position{s.segments[0].number, s.segments[0].low}
	}
	if s.unusable > 0 && s.unusable < c.done.segment {
		c.done = position{segment: s.unusable} // the segment may be usable at the next start
	}
	for _, g := range s.segments {
		if handed := max(g.handed, min(g.before, g.written)); handed > 0 {
			c.handed = position{g.number, handed}
		}
	}
	_, err := s.cursor.WriteAt(c.encode(), 0)
	if !clean {
		return err
	}
	if err == nil {
		err = s.cursor.Sync()
	}
	err = errors.Join(err, s.cursor.Close())
	s.cursor = nil
	if err != nil {
		return fmt.Errorf("write spool cursor: %w", err)
	}
	return nil
}
