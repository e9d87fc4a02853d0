package k8s

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"google.golang.org/protobuf/proto"
	core "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

const (
	// settle is how long changes are collected before they are reported: a
	// deployment changes its pods and endpoints many times within a second.
	settle = time.Second
	// repeat is the interval between reports of everything. Servers treat a pod
	// as gone after two missed intervals.
	repeat = 6 * time.Hour
	// reportTimeout bounds one report, for which the server waits for Kafka.
	reportTimeout = 30 * time.Second
	// podsAtOnce and bytesAtOnce limit a report to about a megabyte, a quarter
	// of gRPC's limit. A complete report holds all pods of the node: a few
	// hundred at most, of a few hundred bytes each.
	podsAtOnce  = 1000
	bytesAtOnce = 1 << 20
)

var backoff = retry.Policy{First: time.Second, Max: time.Minute}

// report sends what is due until ctx ends.
func (w *Watcher) report(ctx context.Context) error {
	again := time.NewTimer(repeatAfter())
	defer again.Stop()
	clean := time.NewTicker(time.Minute)
	defer clean.Stop()
	for {
		select {
		case <-w.due:
			if retry.Sleep(ctx, settle) != nil {
				return nil
			}
			w.sendAll(ctx)
		case <-again.C:
			again.Reset(repeatAfter())
			w.ReportAll()
		case <-clean.C:
			w.forget(time.Now())
		case <-ctx.Done():
			return nil
		}
	}
}

// repeatAfter returns the time until the next report of everything, with jitter
// for agents that started together.
func repeatAfter() time.Duration { return repeat - rand.N(repeat/8) } //nolint:gosec // jitter, not security

// firstReport requests a report of everything once the pods are known.
func (w *Watcher) firstReport(ctx context.Context) error {
	if cache.WaitForCacheSync(ctx.Done(), w.pods.HasSynced) {
		w.ReportAll()
	}
	return nil
}

// sendAll sends until nothing is left or ctx ends.
func (w *Watcher) sendAll(ctx context.Context) {
	_ = retry.Do(ctx, backoff, w.send, func(f retry.Failure) {
		if f.Count == 1 {
			w.log.Warn("cannot report pods and services, retrying", slog.Any("error", f.Err))
		}
	})
}

// send sends everything that is due, in as many pieces as needed. A piece that
// fails is put back.
func (w *Watcher) send(ctx context.Context) error {
	for {
		piece := w.next()
		if piece == nil {
			return nil
		}
		err := w.sendPiece(ctx, piece)
		switch {
		case err == nil:
			w.metrics.reports.WithLabelValues(reported).Inc()
		case fault.ClassOf(err) == fault.Rejected:
			w.metrics.reports.WithLabelValues(rejected).Inc()
			w.log.Error("report rejected, skipping it", slog.Any("error", err))
		default:
			w.metrics.reports.WithLabelValues(failed).Inc()
			w.putBack(piece)
			return err
		}
	}
}

func (w *Watcher) sendPiece(ctx context.Context, p *piece) error {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	return w.opts.Reporter.Report(ctx, p.request)
}

// piece is a request, and what must be reported again if it fails.
type piece struct {
	request  *agentv1.ReportRequest
	news     map[string]*agentv1.Pod
	services map[string]*agentv1.Service
}

// next returns the next piece, or nil if nothing is due.
func (w *Watcher) next() *piece {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := &piece{
		request: &agentv1.ReportRequest{
			AgentId: w.opts.AgentID, Cluster: w.opts.Cluster, Node: w.node, TimeUnixNano: nanos(time.Now()),
		},
		news: map[string]*agentv1.Pod{}, services: map[string]*agentv1.Service{},
	}
	if w.all && w.pods.HasSynced() {
		w.all = false
		p.request.Complete = true
		for _, o := range w.pods.GetStore().List() {
			if pod, ok := o.(*core.Pod); ok {
				delete(w.news, string(pod.UID))
				p.request.Pods = append(p.request.Pods, podOf(pod, time.Time{}))
			}
		}
	}
	for uid, pod := range w.news {
		if len(p.request.Pods) >= podsAtOnce {
			break
		}
		delete(w.news, uid)
		p.news[uid] = pod
		p.request.Pods = append(p.request.Pods, pod)
	}
	w.nextServices(p)
	if len(p.request.Pods) == 0 && len(p.request.Services) == 0 && !p.request.Complete {
		return nil
	}
	return p
}

// nextServices adds services to a piece. The caller holds mu.
func (w *Watcher) nextServices(p *piece) {
	size := proto.Size(p.request)
	for key, service := range w.changed {
		if size >= bytesAtOnce {
			return
		}
		delete(w.changed, key)
		p.services[key] = service
		if service == nil && w.services != nil {
			service = w.services.get(key)
		}
		if service == nil {
			continue // deleted, which is reported separately, or another agent's to report
		}
		p.request.Services = append(p.request.Services, service)
		size += proto.Size(service)
	}
}

// putBack queues the contents of a piece again, except those that changed
// since.
func (w *Watcher) putBack(p *piece) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = w.all || p.request.Complete
	for uid, pod := range p.news {
		if w.news[uid] == nil {
			w.news[uid] = pod
		}
	}
	for key, service := range p.services {
		if _, newer := w.changed[key]; !newer {
			w.changed[key] = service
		}
	}
}
