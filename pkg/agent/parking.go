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

	"github.com/metaflowys/metaflow-server/pkg/agent/parked"
	"github.com/metaflowys/metaflow-server/pkg/agent/spool"
	"github.com/metaflowys/metaflow-server/pkg/agent/upstream"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/flows"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
)

// Parking is where requests go that were acknowledged and that servers do not take. All signals share it.
type Parking struct {
	Folder *parked.Folder // nil keeps them in the spool
	MaxAge time.Duration  // after which they are removed, and counted as lost; 0 is never
}

const (
	// parkedInterval is how often parked requests that wait for their servers to be mended are tried.
	parkedInterval = 30 * time.Second
	// failuresInRow ends a round: the trouble is not with these requests alone.
	failuresInRow = 3
	encodingZstd  = "zstd"
)

// park puts a request of the spool into the folder. refused is how many of its items are not stored. When there is
// no room the request is held: nothing that was acknowledged is dropped.
func (d *drainer) park(ctx context.Context, entry spool.Entry, h parked.Head) error {
	h.Signal, h.Received, h.Encoding = d.signal.Items, entry.Received, encodingZstd
	err := d.putAside(h, entry.Body)
	if err == nil {
		d.log.ErrorContext(ctx, "a request of the spool is parked", slog.Int64(h.Signal, h.Refused), slog.Bool("waits", h.Waits),
			slog.Time("received", h.Received), slog.String("cause", h.Cause))
		return d.done(entry)
	}
	if d.held.fill(&held{entry: entry, head: &h, due: time.Now().Add(d.holdParked)}) {
		d.log.ErrorContext(ctx, "a request of the spool cannot be parked and stays there", slog.Any("error", err), slog.String("cause", h.Cause))
		return nil
	}
	d.held.block(1)
	defer d.held.block(-1)
	d.log.ErrorContext(ctx, "no more can be drained: what servers refuse cannot be parked", slog.Any("error", err), slog.String("cause", h.Cause))
	d.spool.Return(entry)
	return retry.Sleep(ctx, d.holdParked)
}

func (d *drainer) putAside(h parked.Head, body []byte) error {
	if d.parking.Folder == nil {
		return errors.New("no folder is configured")
	}
	if err := d.parking.Folder.Put(h, body); err != nil {
		return err
	}
	d.metrics.parked.Add(float64(h.Refused))
	return nil
}

// Bounds of what is held in memory while the spool keeps it: enough to look past the requests that
// servers refuse, little beside what the agent takes otherwise.
const (
	maxHeld      = 256
	maxHeldBytes = 16 << 20
	// holdFailed is how long a request is held that failed again and again; others may pass meanwhile.
	holdFailed = 5 * time.Second
	// holdParked is how long one is held for which there is no room in the folder.
	holdParked = 10 * time.Second
)

// held is a request that is handed out and neither under way nor done.
type held struct {
	entry spool.Entry
	head  *parked.Head // set when it waits for room in the folder
	due   time.Time
}

// holding is what a drainer holds. It loses nothing when the process ends: the spool has it.
type holding struct {
	mu      sync.Mutex
	all     []*held
	bytes   int
	waiting int // workers that found no room
}

// fill takes h when there is room.
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

// due takes out what has been held long enough.
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

// unparked is how many requests wait for room in the folder.
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

// blocked is how many requests cannot even be held.
func (s *holding) blocked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting
}

// release gives back, or parks, what has been held long enough, until ctx ends.
func (d *drainer) release(ctx context.Context) {
	for retry.Sleep(ctx, d.holdTick) == nil {
		for _, h := range d.held.due(time.Now()) {
			switch {
			case h.head == nil:
				d.spool.Return(h.entry)
			case d.putAside(*h.head, h.entry.Body) == nil:
				_ = d.done(h.entry)
			case h.head.Waits: // its cause may be mended by now
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

// retryParked tries the parked requests of its signal that wait, and removes what is too old, until ctx ends.
func (d *drainer) retryParked(ctx context.Context) {
	after := "" // the name of the one that was tried last, so that all have their turn
	for retry.Sleep(ctx, d.parkedInterval) == nil {
		if err := d.expire(time.Now()); err != nil {
			d.log.ErrorContext(ctx, "parked requests cannot be removed", slog.Any("error", err))
		}
		names, err := d.parking.Folder.Waiting(d.signal.Items)
		if err != nil {
			d.log.ErrorContext(ctx, "parked requests cannot be listed", slog.Any("error", err))
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
				d.log.InfoContext(ctx, "a parked request is delivered", slog.String("file", name), slog.Int(h.Signal, h.Items))
			case fault.ClassOf(err) == fault.Rejected: // for good: it waits no more
				h.Waits, h.Cause = false, err.Error()
				if err := d.parking.replace(h); err != nil {
					d.log.ErrorContext(ctx, "a parked request cannot be written again", slog.Any("error", err))
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

// sendParked sends a parked request and removes it when all of it is stored. An error of class
// fault.Rejected says that it is not, and never will be as it is.
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

// replace writes a parked request again with another head.
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
		h, _, _ := d.parking.Folder.Get(name) // a damaged one goes too, uncounted
		if removeErr := d.parking.Folder.Remove(name); removeErr != nil {
			err = errors.Join(err, removeErr)
			continue
		}
		d.metrics.lost.Add(float64(h.Refused))
		d.log.Error("a parked request is removed for its age", slog.String("file", name), slog.Int64(h.Signal, h.Refused), slog.String("cause", h.Cause))
	}
	return err
}

// RetryReport says what RetryParked did.
type RetryReport struct {
	Sent, Items int           // requests that are stored now, and what they held
	Failed      []parked.Head // that are not, with the cause of now
}

// RetryOptions are of RetryParked.
type RetryOptions struct {
	Logger  *slog.Logger
	Keep    func(parked.Head) bool // which requests
	Timeout time.Duration          // how long it waits for a server
}

// signals are those that an agent parks requests of.
var signals = []*signal.Signal{traces.Signal, flows.Signal}

// RetryParked sends parked requests and removes those that a server has stored. It is for an operator who has
// mended the cause; an agent may be running.
func RetryParked(ctx context.Context, folder *parked.Folder, up Upstream, opts RetryOptions) (RetryReport, error) {
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

// plural is n with its noun.
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// registerParked exposes what the folder holds, and what it has no room for.
func registerParked(reg prometheus.Registerer, folder *parked.Folder, drainers []*drainer) {
	if reg == nil {
		return
	}
	gauge := func(name, help string, f func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help}, f))
	}
	gauge("parked_requests", "Requests in the folder of parked requests.", func() float64 {
		n, _, _ := folder.Usage()
		return float64(n)
	})
	gauge("parked_bytes", "Bytes that the folder of parked requests takes.", func() float64 {
		_, bytes, _ := folder.Usage()
		return float64(bytes)
	})
	gauge("unparked_requests", "Requests that servers refuse and that stay in the spools, because there is no room to park them.", func() float64 {
		n := 0
		for _, d := range drainers {
			n += d.held.unparked()
		}
		return float64(n)
	})
	gauge("parked_max_bytes", "Bytes that the folder of parked requests may take.", func() float64 { return float64(folder.MaxBytes()) })
}
