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

// ErrFull says that there is no room: the bound is reached, or the disk is full.
var ErrFull = errors.New("spool is full")

// ErrClosed is returned by what is called after Close.
var ErrClosed = errors.New("spool is closed")

// Config says where and how much.
type Config struct {
	Dir      string // of the spool alone; made when it is missing
	MaxBytes int64  // that the files may take; see SetMaxBytes
}

// leastMaxBytes leaves room for a few segments.
const leastMaxBytes = 4 * leastSegment

// Validate reports every problem at once.
func (c Config) Validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("dir: none is given"))
	}
	if c.MaxBytes < leastMaxBytes {
		errs = append(errs, fmt.Errorf("max_bytes: %d is less than %d", c.MaxBytes, leastMaxBytes))
	}
	return errors.Join(errs...)
}

// Options are what code sets. The zero value is usable.
type Options struct {
	Logger     *slog.Logger          // nil logs nothing
	Registerer prometheus.Registerer // nil registers nothing
}

// Entry is one request.
type Entry struct {
	Body     []byte
	Resend   bool      // a server may have it already
	Received time.Time // to the nanosecond, without a time zone

	// Tries and Since are the caller's to say how often it was given back, and since when.
	// They are not kept on disk.
	Tries int
	Since time.Time

	at position // as handed out by Next
}

// Spool is the queue. Make one with Open. Its methods may be called by many
// goroutines.
type Spool struct {
	dir     *os.File // holds the lock
	log     *slog.Logger
	metrics *metrics

	syncing chan struct{} // holds one token while somebody syncs; comes before mu

	reading sync.Mutex // one entry is read at a time; comes before mu
	source  *segment   // that was read last
	input   *os.File   // of source
	scanner *scanner   // over input

	mu       sync.Mutex
	closed   bool
	maxBytes int64
	bytes    int64      // of all segments
	entries  int        // durable and not done
	segments []*segment // by number
	next     uint64     // number of the next segment
	active   *segment   // the last one, when it can be added to
	unsynced []*segment
	batch    *batch // of appends that wait for the next sync
	out      map[position]Entry
	returned []Entry // given back, by position
	wake     chan struct{}
	cursor   *os.File // nil when it cannot be written
	unusable uint64   // number of the first segment that is left alone, 0 when there is none
}

// batch is the appends that share a sync.
type batch struct {
	done chan struct{} // closed after the sync
}

// Open opens the spool in cfg.Dir, which no other process may have open, and
// mends what a crash left. Only a directory that cannot be used is an error.
func Open(cfg Config, opts Options) (_ *Spool, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("spool config: %w", err)
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make spool: %w", err)
	}
	dir, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	s := &Spool{
		dir:      dir,
		log:      opts.Logger,
		metrics:  newMetrics(),
		syncing:  make(chan struct{}, 1),
		maxBytes: cfg.MaxBytes,
		out:      make(map[position]Entry),
		wake:     make(chan struct{}),
	}
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
	if err := s.metrics.register(opts.Registerer, s); err != nil {
		return nil, fmt.Errorf("register spool metrics: %w", err)
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

// load finds the segments. It runs before anybody else knows the Spool.
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
		s.log.Warn("what is done in the spool cannot be remembered; after a restart it may be sent again", slog.Any("error", err))
	}
	s.cursor = file
	s.next = max(last.done.segment, last.handed.segment, 1) - 1
	for _, n := range numbers {
		s.next = max(s.next, n)
		s.adopt(n, last)
	}
	s.next++
	if s.entries > 0 {
		s.log.Info("spool holds entries of before", slog.Int("entries", s.entries), slog.Int64("bytes", s.bytes), slog.Time("oldest", s.Oldest()))
	}
	return nil
}

// adopt takes an existing segment in, as far as last does not say that it is done.
func (s *Spool) adopt(number uint64, last cursor) {
	g, cut, err := openSegment(s.dir.Name(), number)
	if err != nil {
		if s.unusable == 0 {
			s.unusable = number
		}
		s.log.Error("a segment of the spool cannot be used and is left alone", slog.String("file", segmentPath(s.dir.Name(), number)), slog.Any("error", err))
		return
	}
	if cut > 0 {
		s.metrics.damaged.Add(float64(cut))
		s.log.Warn("the end of a segment of the spool was damaged and is cut off", slog.String("file", g.path),
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
		s.log.Debug("a segment of the spool is done", slog.String("file", g.path))
		if err := s.sweep(); err != nil {
			s.log.Warn("a segment of the spool that is done cannot be removed", slog.String("file", g.path), slog.Any("error", err))
		}
	}
}

// Append adds e and returns when it is on stable storage. It keeps nothing of e.
// After an error, e is not in the spool. What ctx says counts only at the
// beginning: then e can still be left out.
func (s *Spool) Append(ctx context.Context, e Entry) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(e.Body) > maxLength {
		return fmt.Errorf("append %d bytes: an entry may have %d", len(e.Body), maxLength)
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
	case <-b.done: // somebody else did it
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

// write puts an entry behind the last one, without a sync. It needs mu.
func (s *Spool) write(h header, body []byte) (*segment, error) {
	if s.closed {
		return nil, ErrClosed
	}
	if s.bytes+h.size()+headerSize > s.maxBytes { // with a footer
		return nil, fmt.Errorf("%w: it takes %d of %d bytes", ErrFull, s.bytes, s.maxBytes)
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

// undo removes what a write left behind that failed. It needs mu.
func (s *Spool) undo(g *segment, cause error) {
	if g.written == 0 {
		// Nobody needs the file, and on a full disk it may hold the last block.
		s.drop(g)
		return
	}
	err := g.file.Truncate(g.size)
	if err != nil {
		// It is not read, and cut off at the next start.
		s.log.Warn("half an entry cannot be removed from the spool", slog.String("file", g.path), slog.Any("error", err), slog.Any("cause", cause))
	}
	if err != nil || !diskFull(cause) {
		s.seal(g) // another file may fare better
	}
}

// drop removes a segment that was never acknowledged in any part. It needs mu.
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
		s.log.Warn("an empty segment of the spool cannot be removed", slog.String("file", g.path), slog.Any("error", err))
	}
}

// seal ends a segment; its file is closed once it is synced. It needs mu.
func (s *Spool) seal(g *segment) {
	if g.sealed {
		return
	}
	g.seal()
	g.size += headerSize // counted even when there was no room for it
	s.bytes += headerSize
	if s.active == g {
		s.active = nil
	}
	s.release(g)
	s.awake() // for those who wait at its end
}

// sync makes durable what was written until now, for all of b. The caller holds
// the token of syncing.
func (s *Spool) sync(b *batch) {
	s.mu.Lock()
	if s.batch != b { // somebody else did it while we took the token
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

// fail takes back what could not be made durable, also what came later: the system
// may have thrown away any of it. It needs mu.
func (s *Spool) fail(g *segment, cause error) {
	s.log.Error("the spool cannot be synced", slog.String("file", g.path), slog.Any("error", cause))
	g.failed = fmt.Errorf("sync spool: %w", cause)
	s.unsynced = slices.DeleteFunc(s.unsynced, func(o *segment) bool { return o == g })
	if g.durable == 0 {
		s.drop(g)
		return
	}
	if err := os.Truncate(g.path, g.durableSize); err != nil {
		s.log.Warn("what was not acknowledged cannot be removed from the spool", slog.String("file", g.path), slog.Any("error", err))
	}
	s.bytes -= g.size - g.durableSize
	g.size, g.written = g.durableSize, g.durable
	g.sealed = true
	if s.active == g {
		s.active = nil
	}
	s.release(g)
}

// release closes the file of a segment that needs no more writing and no more
// syncing. It needs mu.
func (s *Spool) release(g *segment) {
	if g.file == nil || !g.sealed || g.syncing || slices.Contains(s.unsynced, g) {
		return
	}
	g.file.Close()
	g.file = nil
}

// awake lets those who wait in Next look again. It needs mu.
func (s *Spool) awake() {
	close(s.wake)
	s.wake = make(chan struct{})
}

// SetMaxBytes sets the bound. Less than what is there refuses new entries until
// enough is done; nothing is thrown away.
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

// Len returns the number of entries that are not done, those handed out included.
func (s *Spool) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entries
}

// Bytes returns what the files take.
func (s *Spool) Bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

// Oldest returns when the oldest entry was received, to the precision of a
// segment, and the zero time when there is none.
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

// Close ends everything that waits and remembers what was handed out. Entries that are
// not done come again, saying so, when the spool is opened again.
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

// remember writes the cursor. It needs mu.
func (s *Spool) remember(clean bool) error {
	if s.cursor == nil {
		return nil
	}
	c := cursor{clean: clean, done: position{segment: s.next}}
	if len(s.segments) > 0 {
		c.done = position{s.segments[0].number, s.segments[0].low}
	}
	if s.unusable > 0 && s.unusable < c.done.segment {
		c.done = position{segment: s.unusable} // it may be usable the next time
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
		return fmt.Errorf("remember what is done in the spool: %w", err)
	}
	return nil
}
