package inventory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
	"unicode"

	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/inventory/index"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

const (
	// staleAfter is when an object that is no longer reported counts as gone. Agents
	// report everything every six hours, so this is two missed reports.
	staleAfter = 13 * time.Hour
	// renewAfter is the minimum age of an object's record before an unchanged report is
	// written again. Agents report everything whenever they connect.
	renewAfter = time.Hour

	sweepInterval = time.Minute
	sweepAtOnce   = 1000

	maxTextBytes = 253 // the limit of Kubernetes names
	maxEndpoints = 1000
	maxPorts     = 100
)

// changes are records to write. Their pods and services must not be changed any more.
type changes struct {
	pods     []*agentv1.Pod
	services []*agentv1.Service
}

func (c *changes) empty() bool { return len(c.pods) == 0 && len(c.services) == 0 }

// Report implements rpc.Reports.
func (r *Resources) Report(ctx context.Context, report *agentv1.ReportRequest) (rejected int, why string, err error) {
	if err := r.Ready(ctx); err != nil {
		return 0, "", err
	}
	now := uint64(r.opts.Now().UnixNano())
	at := min(report.TimeUnixNano, now) // a clock that is ahead must not win over later reports
	var refusals []error
	refuse := func(kind, name string, err error) {
		rejected++
		if len(refusals) < 3 {
			refusals = append(refusals, fmt.Errorf("%s %.64q: %w", kind, name, err))
		}
	}
	var write changes
	r.mu.RLock()
	of := r.owners(report.Cluster)
	if err := r.mayReport(report, of); err != nil {
		r.mu.RUnlock()
		return 0, "", err
	}
	room := r.room()
	reported := make(map[string]bool, len(report.Pods))
	for _, p := range report.Pods {
		reported[p.Uid] = true
		if err := checkPod(p); err != nil {
			refuse("pod", p.Namespace+"/"+p.Name, err)
			continue
		}
		p.Cluster, p.Node, p.SeenTimeUnixNano = report.Cluster, report.Node, at
		known := r.index.Pod(report.Cluster, p.Uid)
		if !of.mayMove(known, report) {
			refuse("pod", p.Namespace+"/"+p.Name, fmt.Errorf("it runs on the node %q, which has another agent", known.Node))
			continue
		}
		if known == nil && !room() {
			refuse("pod", p.Namespace+"/"+p.Name, errFull)
			continue
		}
		if merged := index.MergePod(known, p); newsOfPod(known, merged) {
			write.pods = append(write.pods, merged)
		}
	}
	if report.Complete {
		for _, known := range r.index.Living(report.Cluster, report.Node) {
			if !reported[known.Uid] && known.SeenTimeUnixNano <= at {
				write.pods = append(write.pods, index.EndPod(known, at))
			}
		}
	}
	for _, s := range report.Services {
		if err := checkService(s); err != nil {
			refuse("service", s.Namespace+"/"+s.Name, err)
			continue
		}
		s.Cluster, s.SeenTimeUnixNano = report.Cluster, at
		known := r.index.Service(report.Cluster, s.Namespace, s.Name)
		if known == nil && !room() {
			refuse("service", s.Namespace+"/"+s.Name, errFull)
			continue
		}
		if merged := index.MergeService(known, s); newsOfService(known, merged) {
			write.services = append(write.services, merged)
		}
	}
	r.mu.RUnlock()
	if rejected > 0 {
		r.metrics.rejected.Add(float64(rejected))
		why = errors.Join(refusals...).Error()
	}
	return rejected, why, r.write(ctx, &write)
}

var errFull = errors.New("the limit of pods and services is reached (resources.max_objects)")

// room returns a function that reports whether one more object fits. The caller holds mu.
func (r *Resources) room() func() bool {
	pods, services := r.index.Count()
	left := r.cfg.MaxObjects - pods - services
	return func() bool {
		left--
		return left >= 0
	}
}

// newsOfPod reports whether a record must be written because it adds to the known one.
func newsOfPod(known, merged *agentv1.Pod) bool {
	if known == nil || merged.SeenTimeUnixNano >= known.SeenTimeUnixNano+uint64(renewAfter) {
		return true
	}
	same := proto.CloneOf(merged)
	same.SeenTimeUnixNano = known.SeenTimeUnixNano
	return !proto.Equal(known, same)
}

func newsOfService(known, merged *agentv1.Service) bool {
	if known == nil || merged.SeenTimeUnixNano >= known.SeenTimeUnixNano+uint64(renewAfter) {
		return true
	}
	same := proto.CloneOf(merged)
	same.SeenTimeUnixNano = known.SeenTimeUnixNano
	return !proto.Equal(known, same)
}

// write returns when Kafka has acknowledged everything. It updates the index at once, so
// that the next report is compared with it.
func (r *Resources) write(ctx context.Context, c *changes) error {
	if c.empty() {
		return nil
	}
	batch := make([]kafka.Outgoing, 0, len(c.pods)+len(c.services))
	for _, p := range c.pods {
		value, err := proto.Marshal(p)
		if err != nil {
			return fault.As(fault.Rejected, fmt.Errorf("marshal pod %s: %w", p.Uid, err))
		}
		batch = append(batch, kafka.Outgoing{Key: []byte(index.PodKey(p)), Value: value})
	}
	for _, s := range c.services {
		value, err := proto.Marshal(s)
		if err != nil {
			return fault.As(fault.Rejected, fmt.Errorf("marshal service %s/%s: %w", s.Namespace, s.Name, err))
		}
		batch = append(batch, kafka.Outgoing{Key: []byte(index.ServiceKey(s)), Value: value})
	}
	if err := r.opts.Producer.Produce(ctx, batch); err != nil {
		return err
	}
	r.metrics.written.Add(float64(len(batch)))
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range c.pods {
		if r.index.Pod(p.Cluster, p.Uid).GetSeenTimeUnixNano() <= p.SeenTimeUnixNano {
			r.index.PutPod(p)
		}
	}
	for _, s := range c.services {
		if r.index.Service(s.Cluster, s.Namespace, s.Name).GetSeenTimeUnixNano() <= s.SeenTimeUnixNano {
			r.index.PutService(s)
		}
	}
	return nil
}

// sweep ends objects that are no longer reported and forgets those that ended long ago.
// Every replica does so; doing it twice does no harm.
func (r *Resources) sweep(ctx context.Context) error {
	retry.Every(ctx, sweepInterval, func() {
		if r.Ready(ctx) != nil {
			return
		}
		if err := r.sweepOnce(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("cannot write the end of stale pods and services, retrying", slog.Any("error", err))
		}
	})
	return nil
}

func (r *Resources) sweepOnce(ctx context.Context) error {
	now := r.opts.Now()
	var over changes
	r.mu.RLock()
	pods, services := r.index.Stale(uint64(now.Add(-staleAfter).UnixNano()))
	for _, p := range pods[:min(len(pods), sweepAtOnce)] {
		over.pods = append(over.pods, index.EndPod(p, p.SeenTimeUnixNano))
	}
	for _, s := range services[:min(len(services), sweepAtOnce)] {
		over.services = append(over.services, index.EndService(s, s.SeenTimeUnixNano))
	}
	oldPods, oldServices := r.index.Ended(uint64(now.Add(-r.cfg.ForgetAfter).UnixNano()))
	r.mu.RUnlock()
	var forget []kafka.Outgoing
	for _, p := range oldPods[:min(len(oldPods), sweepAtOnce)] {
		forget = append(forget, kafka.Outgoing{Key: []byte(index.PodKey(p))})
	}
	for _, s := range oldServices[:min(len(oldServices), sweepAtOnce)] {
		forget = append(forget, kafka.Outgoing{Key: []byte(index.ServiceKey(s))})
	}
	if err := r.write(ctx, &over); err != nil {
		return err
	}
	if len(forget) == 0 {
		return nil
	}
	if err := r.opts.Producer.Produce(ctx, forget); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range forget {
		if err := r.index.Observe(f.Key, nil); err != nil {
			return err
		}
	}
	return nil
}

func checkPod(p *agentv1.Pod) error {
	errs := []error{checkText("uid", p.Uid), checkText("namespace", p.Namespace), checkText("name", p.Name), checkText("workload", p.Workload), checkText("workload_kind", p.WorkloadKind)}
	if p.Uid == "" {
		errs = append(errs, errors.New("uid: must not be empty"))
	}
	if len(p.Addresses) > index.MaxAddresses {
		errs = append(errs, fmt.Errorf("addresses: %d are more than %d", len(p.Addresses), index.MaxAddresses))
	}
	for _, a := range p.Addresses {
		errs = append(errs, checkAddress(a.GetAddress()))
	}
	return errors.Join(errs...)
}

func checkService(s *agentv1.Service) error {
	errs := []error{checkText("namespace", s.Namespace), checkText("name", s.Name)}
	if s.Name == "" {
		errs = append(errs, errors.New("name: must not be empty"))
	}
	if len(s.Ports) > maxPorts {
		s.Ports = s.Ports[:maxPorts] // the rest is not needed
	}
	if len(s.Addresses) > index.MaxAddresses || len(s.Endpoints) > maxEndpoints {
		errs = append(errs, fmt.Errorf("%d addresses or %d endpoints are too many", len(s.Addresses), len(s.Endpoints)))
	}
	for _, a := range s.Addresses {
		errs = append(errs, checkAddress(a))
	}
	for _, a := range s.Endpoints {
		errs = append(errs, checkAddress(a))
	}
	for _, p := range s.Ports {
		errs = append(errs, checkText("ports", p.GetName()))
	}
	return errors.Join(errs...)
}

func checkAddress(b []byte) error {
	if len(b) != 4 && len(b) != 16 {
		return fmt.Errorf("an address of %d bytes", len(b))
	}
	return nil
}

func checkText(field, text string) error {
	if len(text) > maxTextBytes {
		return fmt.Errorf("%s: longer than %d bytes", field, maxTextBytes)
	}
	for _, c := range text {
		if !unicode.IsPrint(c) || c == '/' {
			return fmt.Errorf("%s: %q has characters that names must not have", field, text)
		}
	}
	return nil
}
