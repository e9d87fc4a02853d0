package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/flows"
)

// Agents knows the agents that are connected.
type Agents interface {
	// AgentHosts returns the addresses that an agent may speak from, nothing when it is not
	// connected to any server. It never blocks.
	AgentHosts(id string) []netip.Addr
}

// Flows consumes the flow data of agents as a Gateway consumes traces. Make it with NewFlows; its
// methods may be called concurrently.
type Flows struct {
	cfg     Config
	agents  Agents
	opts    Options
	metrics *metrics
	sender  sender
	work    sync.Pool // of *flowWork
}

// flowWork is the memory that one request needs.
type flowWork struct {
	splitter flows.Splitter
	batch    []kafka.Outgoing
}

// NewFlows returns a consumer that hands flows to producer. It starts nothing. agents may be nil: then nobody is
// asked whether a request comes from where its agent is.
func NewFlows(cfg Config, producer Producer, agents Agents, opts Options) (*Flows, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	opts.fill()
	f := &Flows{cfg: cfg, agents: agents, opts: opts, metrics: newMetrics(opts.Registerer, "flows")}
	f.sender = sender{producer: producer, metrics: f.metrics, now: opts.Now, window: opts.DedupWindow, split: f.split}
	f.work.New = func() any { return new(flowWork) }
	return f, nil
}

// ConsumeFlows stores the flows of req in Kafka. It implements otlpgrpc.FlowConsumer: a nil error means
// that every flow but those counted in the result is durable. An error of class
// fault.Rejected means that req is no ExportFlowsRequest, or not of the agent that it says it is of.
func (f *Flows) ConsumeFlows(ctx context.Context, req rpc.Request) (rpc.Result, error) {
	w := f.work.Get().(*flowWork)
	defer f.work.Put(w)
	now := f.opts.Now()
	received := f.cfg.firstReceipt(&req, now)
	layout := f.sender.producer.Layout()
	window := signal.WindowAt(received, f.cfg.AcceptPast, f.cfg.AcceptFuture)
	records, rejected, err := w.splitter.Split(req.Body, flows.Options{
		Partitions: layout.Partitions, Window: window, MaxRecordBytes: f.opts.MaxRecordBytes,
	})
	if err != nil {
		f.metrics.malformed.Inc()
		return rpc.Result{}, fault.As(fault.Rejected, fmt.Errorf("read ExportFlowsRequest: %w", err))
	}
	if err := f.checkSender(&req); err != nil {
		f.metrics.foreign.Inc()
		return rpc.Result{}, fault.As(fault.Rejected, err)
	}
	flows := 0
	w.batch = w.batch[:0]
	from := request{Request: &req, received: received, marked: f.sender.marks(layout, now)}
	oversize := f.sender.oversizeAt(now)
	for _, r := range records {
		flows += r.Flows
		w.batch = append(w.batch, from.outgoing(r.Partition, r.Value, r.Value, len(r.Value) >= oversize))
	}
	f.metrics.repaired.Add(float64(rejected.RepairedTexts))
	countReceived(f.metrics, flows, &rejected)
	if err := f.sender.send(ctx, &from, w.batch, flows); err != nil {
		return rpc.Result{}, err
	}
	if rejected.Total() == 0 {
		return rpc.Result{}, nil
	}
	return rpc.Result{Rejected: rejected.Total(), Message: rejected.Message(window, f.opts.MaxRecordBytes)}, nil
}

// split is what the sender splits records of flows with.
func (f *Flows) split(value []byte, size int) ([][]byte, error) {
	var s flows.Splitter
	records, rejected, err := s.Split(value, flows.Options{
		Partitions: 1, Window: anyTime, MaxRecordBytes: f.opts.MaxRecordBytes, SplitBytes: size,
	})
	if err == nil && rejected.Total() > 0 {
		err = errors.New(rejected.Message(anyTime, f.opts.MaxRecordBytes))
	}
	values := make([][]byte, len(records))
	for i := range records {
		values[i] = records[i].Value
	}
	return values, err
}

// maxAgentID is several times as long as ids are, and short enough to be told in an answer.
const maxAgentID = 256

// checkSender holds a request to the agent that sent it: counters under the id of another would be taken
// for that agent's.
func (f *Flows) checkSender(req *rpc.Request) error {
	var head flows.Head
	head.Read(req.Body)
	id := string(head.AgentID)
	switch {
	case id == "":
		return errors.New("agent_id: it is empty")
	case len(id) > maxAgentID:
		return fmt.Errorf("agent_id: it has %d bytes, more than %d", len(id), maxAgentID)
	case id != req.Agent:
		return fmt.Errorf("agent_id: it is %q, and the call's metadata says %q", id, req.Agent)
	case f.agents == nil || !f.cfg.CheckAgents || !req.Peer.IsValid():
		return nil
	}
	if hosts := f.agents.AgentHosts(id); len(hosts) > 0 && !slices.Contains(hosts, req.Peer.Addr()) {
		return fmt.Errorf("agent_id: agent %q is connected from %v, and this request comes from %s (see gateway.check_agents)", id, hosts, req.Peer.Addr())
	}
	return nil
}
