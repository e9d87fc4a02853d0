package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/metaflowys/metaflow-server/pkg/agent/parked"
	"github.com/metaflowys/metaflow-server/pkg/agent/spool"
	"github.com/metaflowys/metaflow-server/pkg/agent/upstream"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/flows"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
)

// Parking configures where acknowledged requests go that servers reject. All
// signals share it.
type Parking struct {
	Folder *parked.Folder // nil keeps them in the spool
	MaxAge time.Duration  // age at which they are removed and counted as lost; 0 means never
}

const (
	// parkedInterval is the interval between attempts to send parked requests
	// that wait.
	parkedInterval = 30 * time.Second
	// failuresInRow ends a round: so many failures are not caused by single
	// requests.
	failuresInRow = 3
	encodingZstd  = "zstd"
)

// park moves a spooled request to the folder. h.Refused is the number of its
// items that are not stored. If there is no room, the request is held:
// acknowledged data is never dropped.
func (d *drainer) park(ctx context.Context, entry spool.Entry, h parked.Head) error {
	h.Signal, h.Received, h.Encoding = d.signal.Items, entry.Received, encodingZstd
	err := d.putAside(h, entry.Body)
	if err == nil {
		d.log.ErrorContext(ctx, "parked a spooled request", slog.Int64(h.Signal, h.Refused), slog.Bool("waits", h.Waits),
			slog.Time("received", h.Received), slog.String("cause", h.Cause))
		return d.done(entry)
	}
	if d.held.fill(&held{entry: entry, head: &h, due: time.Now().Add(d.holdParked)}) {
		d.log.ErrorContext(ctx, "cannot park a spooled request, keeping it in the spool", slog.Any("error", err), slog.String("cause", h.Cause))
		return nil
	}
	d.held.block(1)
	defer d.held.block(-1)
	d.log.ErrorContext(ctx, "draining is blocked: cannot park the requests that servers reject", slog.Any("error", err), slog.String("cause", h.Cause))
	d.spool.Return(entry)
	return retry.Sleep(ctx, d.holdParked)
}

func (d *drainer) putAside(h parked.Head, body []byte) error {
	if d.parking.Folder == nil {
		return errors.New("no folder configured")
	}
	if err := d.parking.Folder.Put(h, body); err != nil {
		return err
	}
	d.metrics.parked.Add(float64(h.Refused))
	return nil
}

// Bounds of the requests held in memory while the spool keeps them: enough to
// get past the requests that servers reject, and little compared with the
// agent's other memory.
const (
	maxHeld      = 256
	maxHeldBytes = 16 << 20
	// holdFailed is how long a request is held that failed repeatedly; others
	// may pass meanwhile.
	holdFailed = 5 * time.Second
	// holdParked is how long a request is held for which the folder has no
	// room.
	holdParked = 10 * time.Second
)

// held is a request that is handed out but neither in flight nor done.
type held struct {
	entry spool.Entry
	head  *parked.Head // set if it waits for room in the folder
	due   time.Time
}

// holding is the set of held requests. It loses nothing when the process ends:
// the spool has them.
type holding struct {
	mu      sync.Mutex
	all     []*held
	bytes   int
	waiting int // workers for whose request there was no room
}

// fill adds h if there is room.
func (s *holding) fill(h *held) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) >= maxHeld || s.bytes+len(h.entry.Body) > maxHeldBytes {
		return false
	}
	s.all = append(s.all, h)
	s.bytes += len(h.entry.Body)
	return true
}

// due removes and returns the requests that have been held long enough.
func (s *holding) due(now time.Time) []*held {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*held
	s.all = slices.DeleteFunc(s.all, func(h *held) bool {
		if now.Before(h.due) {
			return false
		}
		s.bytes -= len(h.entry.Body)
		out = append(out, h)
		return true
	})
	return out
}

func (s *holding) block(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting += n
}

// unparked returns the number of requests that wait for room in the folder.
func (s *holding) unparked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.waiting
	for _, h := range s.all {
		if h.head != nil {
			n++
		}
	}
	return n
}

// blocked returns the number of requests that do not even fit into memory.
func (s *holding) blocked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting
}

// release returns or parks the requests that have been held long enough, until
// ctx ends.
func (d *drainer) release(ctx context.Context) {
	for retry.Sleep(ctx, d.holdTick) == nil {
		for _, h := range d.held.due(time.Now()) {
			switch {
			case h.head == nil:
				d.spool.Return(h.entry)
			case d.putAside(*h.head, h.entry.Body) == nil:
				_ = d.done(h.entry)
			case h.head.Waits: // the cause may be fixed by now
				d.spool.Return(h.entry)
			default:
				h.due = time.Now().Add(d.holdParked)
				if !d.held.fill(h) {
					d.spool.Return(h.entry)
				}
			}
		}
	}
}

// retryParked sends the parked requests of its signal that wait, and removes
// those that are too old, until ctx ends.
func (d *drainer) retryParked(ctx context.Context) {
	after := "" // name of the request tried last, so that all get their turn
	for retry.Sleep(ctx, d.parkedInterval) == nil {
		if err := d.expire(time.Now()); err != nil {
			d.log.ErrorContext(ctx, "cannot remove parked requests", slog.Any("error", err))
		}
		names, err := d.parking.Folder.Waiting(d.signal.Items)
		if err != nil {
			d.log.ErrorContext(ctx, "cannot list parked requests", slog.Any("error", err))
			continue
		}
		if i := slices.IndexFunc(names, func(name string) bool { return name > after }); i > 0 {
			names = slices.Concat(names[i:], names[:i])
		}
		failed := 0
		for _, name := range names {
			if ctx.Err() != nil || failed == failuresInRow || !d.up.Ready() || d.rest.active() {
				break
			}
			after = name
			h, body, err := d.readParked(name)
			if err == nil {
				err = d.take(ctx, len(body))
			}
			if err == nil {
				err = d.sendParked(ctx, h, body, d.compress.Load())
			}
			switch {
			case err == nil:
				failed = 0
				d.log.InfoContext(ctx, "delivered a parked request", slog.String("file", name), slog.Int(h.Signal, h.Items))
			case fault.ClassOf(err) == fault.Rejected: // permanent: it waits no more
				h.Waits, h.Cause = false, err.Error()
				if err := d.parking.replace(h); err != nil {
					d.log.ErrorContext(ctx, "cannot rewrite a parked request", slog.Any("error", err))
				}
			default:
				failed++
			}
		}
	}
}

// readParked returns the request in a file of the folder.
func (d *drainer) readParked(name string) (h parked.Head, body []byte, err error) {
	h, packed, err := d.parking.Folder.Get(name)
	if err == nil {
		body, err = d.codec.unpack(packed)
	}
	return h, body, err
}

// sendParked sends a parked request and removes it if all of it is stored. An
// error of class fault.Rejected means that the request will never be stored as
// it is.
func (d *drainer) sendParked(ctx context.Context, h parked.Head, body []byte, compress bool) error {
	n := d.signal.Count(body)
	res, _, err := d.export(ctx, body, upstream.ExportOptions{Resend: true, Received: h.Received, Compress: compress})
	if err != nil {
		return err
	}
	if res.Rejected > 0 {
		d.metrics.rejectedItems.WithLabelValues(pathParked).Add(float64(res.Rejected))
		return fault.As(fault.Rejected, partlyRefused(res, n))
	}
	d.metrics.forwarded(pathParked, int(h.Refused), 0)
	return d.parking.Folder.Remove(h.Name)
}

func partlyRefused(res signal.Result, n int) error {
	return fmt.Errorf("%d of %d rejected: %s", res.Rejected, n, res.Message)
}

// replace rewrites a parked request with another head.
func (p Parking) replace(h parked.Head) error {
	_, body, err := p.Folder.Get(h.Name)
	if err != nil {
		return err
	}
	if err := p.Folder.Put(h, body); err != nil {
		return err
	}
	return p.Folder.Remove(h.Name)
}

// expire removes the parked requests of its signal that are older than MaxAge.
func (d *drainer) expire(now time.Time) error {
	if d.parking.MaxAge <= 0 {
		return nil
	}
	names, err := d.parking.Folder.ParkedBefore(now.Add(-d.parking.MaxAge), d.signal.Items)
	for _, name := range names {
		h, _, _ := d.parking.Folder.Get(name) // a damaged request is removed too, uncounted
		if removeErr := d.parking.Folder.Remove(name); removeErr != nil {
			err = errors.Join(err, removeErr)
			continue
		}
		d.metrics.lost.Add(float64(h.Refused))
		d.log.Error("removed an expired parked request", slog.String("file", name), slog.Int64(h.Signal, h.Refused), slog.String("cause", h.Cause))
	}
	return err
}

// RetryReport is the result of RetryParked.
type RetryReport struct {
	Sent, Items int           // stored requests and their items
	Failed      []parked.Head // requests not stored, with the latest cause
}

// RetryOptions are the options of RetryParked.
type RetryOptions struct {
	Logger  *slog.Logger
	Keep    func(parked.Head) bool // selects the requests
	Timeout time.Duration          // how long to wait for a server
}

// signals are the signals whose requests an agent parks.
var signals = []*signal.Signal{traces.Signal, flows.Signal}

// RetryParked sends parked requests and removes those that a server has stored,
// for an operator who has fixed the cause. An agent may be running.
func RetryParked(ctx context.Context, folder *parked.Folder, up Servers, opts RetryOptions) (RetryReport, error) {
	log, keep := opts.Logger, opts.Keep
	codec, err := newCodec()
	if err != nil {
		return RetryReport{}, err
	}
	defer codec.close()
	parking := Parking{Folder: folder}
	drainers := map[string]*drainer{}
	for _, sig := range signals {
		drainers[sig.Items] = newDrainer(&pipe{signal: sig, up: up, codec: codec, log: log, metrics: newPipeMetrics(nil, sig)}, parking)
	}
	heads, err := folder.List()
	if err != nil {
		return RetryReport{}, err
	}
	var report RetryReport
	for _, h := range heads {
		if !keep(h) {
			continue
		}
		d := drainers[h.Signal]
		if d == nil { // damaged
			report.Failed = append(report.Failed, h)
			continue
		}
		waiting, cancel := context.WithTimeout(ctx, opts.Timeout)
		err := d.up.WaitReady(waiting)
		cancel()
		if err != nil {
			return report, err
		}
		_, body, err := d.readParked(h.Name)
		if err == nil {
			err = d.sendParked(ctx, h, body, true)
		}
		if err != nil {
			h.Cause = err.Error()
			report.Failed = append(report.Failed, h)
			continue
		}
		report.Sent++
		report.Items += h.Items
	}
	return report, nil
}

// plural formats n with its noun.
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// registerParked registers metrics of the folder and of requests without room
// in it.
func registerParked(reg prometheus.Registerer, folder *parked.Folder, drainers []*drainer) {
	f := promauto.With(reg)
	gauge := func(name, help string, of func() float64) {
		f.NewGaugeFunc(prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help}, of)
	}
	gauge("parked_requests", "Requests in the folder of parked requests.", func() float64 {
		n, _, _ := folder.Usage()
		return float64(n)
	})
	gauge("parked_bytes", "Bytes of the folder of parked requests.", func() float64 {
		_, bytes, _ := folder.Usage()
		return float64(bytes)
	})
	gauge("unparked_requests", "Rejected requests that stay in the spools because there is no room to park them.", func() float64 {
		n := 0
		for _, d := range drainers {
			n += d.held.unparked()
		}
		return float64(n)
	})
	gauge("parked_max_bytes", "Bound of the bytes of the folder of parked requests.", func() float64 { return float64(folder.MaxBytes()) })
}
