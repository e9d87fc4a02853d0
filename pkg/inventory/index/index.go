package index

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

const (
	// Slack is by how much a question may miss the time in which an address was held. It is some
	// times the difference of clocks that is tolerated elsewhere.
	Slack = 5 * time.Second
	// aliveWithin is how long after the newest sign of life of a node others with the same
	// address are taken for alive too.
	aliveWithin = 5 * time.Minute
)

// Kind is what kind of thing holds an address.
type Kind uint8

// Kinds of holders.
const (
	Nobody Kind = iota
	Pod
	Service
	Node
)

// Holder is who held an address. What does not apply to its kind is empty.
type Holder struct {
	Kind      Kind
	Namespace string
	Name      string // of the pod, the service or the node
	UID       string // of the pod
	Node      string // of the pod; or the node itself
	Workload  string // of the pod
}

// place is an address in a cluster; plain hosts have no cluster.
type place struct {
	cluster string
	address netip.Addr
}

// holding is a time in which something had an address: nanoseconds, and an end of 0 is none yet.
type holding struct {
	key      string // of the record it is from
	from, to uint64
	holder   Holder
}

// host is a node that has an address.
type host struct {
	key, node string
	seen      uint64
}

// Index is what the records of metaflow.resources amount to. Make it with New.
type Index struct {
	pods     map[string]*agentv1.Pod // by key, and so are the others
	services map[string]*agentv1.Service
	agents   map[string]*agentv1.AgentStatus

	byPod     map[place][]holding // the latest beginning first
	byService map[place][]holding
	byHost    map[place][]host
}

// New returns an Index that knows nothing.
func New() *Index {
	x := &Index{}
	x.Forget()
	return x
}

// Forget goes back to before the first record.
func (x *Index) Forget() {
	*x = Index{
		pods: map[string]*agentv1.Pod{}, services: map[string]*agentv1.Service{}, agents: map[string]*agentv1.AgentStatus{},
		byPod: map[place][]holding{}, byService: map[place][]holding{}, byHost: map[place][]host{},
	}
}

// Observe takes a record. A nil value says that the thing is to be forgotten. Records of other kinds are
// passed over; an error says that this one makes no sense, and then it changed nothing.
func (x *Index) Observe(key, value []byte) error {
	k := string(key)
	switch {
	case strings.HasPrefix(k, schema.KeyPod):
		return x.observePod(k, value)
	case strings.HasPrefix(k, schema.KeyService):
		return x.observeService(k, value)
	case strings.HasPrefix(k, schema.KeyAgent):
		return x.observeAgent(k, value)
	default:
		return nil
	}
}

// errMisplaced is about a record that says it is another one's.
var errMisplaced = errors.New("the record does not belong to its key")

func (x *Index) observePod(key string, value []byte) error {
	if value == nil {
		x.removePod(key)
		return nil
	}
	p := new(agentv1.Pod)
	if err := proto.Unmarshal(value, p); err != nil {
		return fmt.Errorf("decode pod: %w", err)
	}
	if PodKey(p) != key {
		return errMisplaced
	}
	x.PutPod(p)
	return nil
}

// PutPod is Observe for a pod's record. p must not be changed afterwards.
func (x *Index) PutPod(p *agentv1.Pod) {
	key := PodKey(p)
	x.removePod(key)
	x.pods[key] = p
	if p.HostNetwork {
		return
	}
	holder := Holder{Kind: Pod, Namespace: p.Namespace, Name: p.Name, UID: p.Uid, Node: p.Node, Workload: p.Workload}
	for _, a := range p.Addresses {
		if addr, ok := addressOf(a.Address); ok {
			put(x.byPod, place{p.Cluster, addr}, holding{key, a.ValidFromUnixNano, a.ValidToUnixNano, holder})
		}
	}
}

func (x *Index) removePod(key string) {
	p := x.pods[key]
	delete(x.pods, key)
	for _, a := range p.GetAddresses() {
		if addr, ok := addressOf(a.Address); ok {
			remove(x.byPod, place{p.Cluster, addr}, key)
		}
	}
}

func (x *Index) observeService(key string, value []byte) error {
	if value == nil {
		x.removeService(key)
		return nil
	}
	s := new(agentv1.Service)
	if err := proto.Unmarshal(value, s); err != nil {
		return fmt.Errorf("decode service: %w", err)
	}
	if ServiceKey(s) != key {
		return errMisplaced
	}
	x.PutService(s)
	return nil
}

// PutService is Observe for a service's record. s must not be changed afterwards.
func (x *Index) PutService(s *agentv1.Service) {
	key := ServiceKey(s)
	x.removeService(key)
	x.services[key] = s
	holder := Holder{Kind: Service, Namespace: s.Namespace, Name: s.Name}
	for _, a := range s.Addresses {
		if addr, ok := addressOf(a); ok {
			put(x.byService, place{s.Cluster, addr}, holding{key, s.StartTimeUnixNano, s.EndTimeUnixNano, holder})
		}
	}
}

func (x *Index) removeService(key string) {
	s := x.services[key]
	delete(x.services, key)
	for _, a := range s.GetAddresses() {
		if addr, ok := addressOf(a); ok {
			remove(x.byService, place{s.Cluster, addr}, key)
		}
	}
}

func (x *Index) observeAgent(key string, value []byte) error {
	if value == nil {
		x.removeAgent(key)
		return nil
	}
	status := new(agentv1.AgentStatus)
	if err := proto.Unmarshal(value, status); err != nil {
		return fmt.Errorf("decode status of agent: %w", err)
	}
	r := status.GetRegistration()
	if schema.KeyAgent+r.GetAgentId() != key {
		return errMisplaced
	}
	x.removeAgent(key)
	x.agents[key] = status
	eachAddress(r, func(at place) {
		x.byHost[at] = append(x.byHost[at], host{key, r.Name, status.SeenTimeUnixNano})
	})
	return nil
}

func (x *Index) removeAgent(key string) {
	status := x.agents[key]
	delete(x.agents, key)
	eachAddress(status.GetRegistration(), func(at place) {
		rest := slices.DeleteFunc(x.byHost[at], func(h host) bool { return h.key == key })
		if len(rest) == 0 {
			delete(x.byHost, at)
			return
		}
		x.byHost[at] = rest
	})
}

// eachAddress calls f for the addresses of a host that others may reach it by, each once.
func eachAddress(r *agentv1.Registration, f func(place)) {
	for i, text := range r.GetAddresses() {
		addr, err := netip.ParseAddr(text)
		if err != nil || slices.Contains(r.Addresses[:i], text) {
			continue
		}
		addr = addr.Unmap().WithZone("")
		if addr.IsLoopback() || addr.IsUnspecified() || addr.IsLinkLocalUnicast() {
			continue
		}
		f(place{r.Cluster, addr})
	}
}

// Lookup returns who of a cluster held an address at a time, in nanoseconds. It allocates nothing.
func (x *Index) Lookup(cluster string, address netip.Addr, at uint64) Holder {
	where := place{cluster, address.Unmap().WithZone("")}
	if h := heldAt(x.byPod[where], at); h != nil {
		return h.holder
	}
	if h := heldAt(x.byService[where], at); h != nil {
		return h.holder
	}
	return nodeOf(x.byHost[where])
}

// heldAt returns who had the address then, or nearly then; nil when nobody.
func heldAt(held []holding, at uint64) *holding {
	var near *holding
	best := uint64(Slack) + 1
	for i := range held {
		h := &held[i]
		switch {
		case h.from > at:
			if d := h.from - at; d < best {
				near, best = h, d
			}
		case h.to == 0 || at < h.to:
			return h
		default:
			if d := at - h.to; d < best {
				near, best = h, d
			}
		}
	}
	return near
}

func nodeOf(hosts []host) Holder {
	var newest host
	for _, h := range hosts {
		if h.seen >= newest.seen {
			newest = h
		}
	}
	for _, h := range hosts {
		if h.node != newest.node && newest.seen-h.seen < uint64(aliveWithin) {
			return Holder{}
		}
	}
	if newest.node == "" {
		return Holder{}
	}
	return Holder{Kind: Node, Name: newest.node, Node: newest.node}
}

// Pod returns the record of a pod, nil when there is none. It must not be changed; that holds for
// all records that an Index gives out.
func (x *Index) Pod(cluster, uid string) *agentv1.Pod {
	return x.pods[PodKey(&agentv1.Pod{Cluster: cluster, Uid: uid})]
}

// Service returns the record of a service, nil when there is none.
func (x *Index) Service(cluster, namespace, name string) *agentv1.Service {
	return x.services[ServiceKey(&agentv1.Service{Cluster: cluster, Namespace: namespace, Name: name})]
}

// Agent returns the status of an agent, nil when it is not registered.
func (x *Index) Agent(id string) *agentv1.AgentStatus { return x.agents[schema.KeyAgent+id] }

// Agents returns the agents that are registered in a cluster.
func (x *Index) Agents(cluster string) (list []*agentv1.AgentStatus) {
	for _, status := range x.agents {
		if status.Registration.Cluster == cluster {
			list = append(list, status)
		}
	}
	return list
}

// Living returns the pods of a node that have not ended, by uid.
func (x *Index) Living(cluster, node string) []*agentv1.Pod {
	return x.podsWhere(func(p *agentv1.Pod) bool { return p.EndTimeUnixNano == 0 && p.Cluster == cluster && p.Node == node })
}

// Stale returns what has not ended and was not reported since a time.
func (x *Index) Stale(since uint64) ([]*agentv1.Pod, []*agentv1.Service) {
	return x.podsWhere(func(p *agentv1.Pod) bool { return p.EndTimeUnixNano == 0 && p.SeenTimeUnixNano < since }),
		x.servicesWhere(func(s *agentv1.Service) bool { return s.EndTimeUnixNano == 0 && s.SeenTimeUnixNano < since })
}

// Ended returns what ended before a time.
func (x *Index) Ended(before uint64) ([]*agentv1.Pod, []*agentv1.Service) {
	return x.podsWhere(func(p *agentv1.Pod) bool { return p.EndTimeUnixNano != 0 && p.EndTimeUnixNano < before }),
		x.servicesWhere(func(s *agentv1.Service) bool { return s.EndTimeUnixNano != 0 && s.EndTimeUnixNano < before })
}

// Count returns how many pods and services are known, those that ended included.
func (x *Index) Count() (pods, services int) { return len(x.pods), len(x.services) }

func (x *Index) podsWhere(want func(*agentv1.Pod) bool) []*agentv1.Pod {
	var list []*agentv1.Pod
	for _, p := range x.pods {
		if want(p) {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b *agentv1.Pod) int { return cmp.Compare(a.Uid, b.Uid) })
	return list
}

func (x *Index) servicesWhere(want func(*agentv1.Service) bool) []*agentv1.Service {
	var list []*agentv1.Service
	for _, s := range x.services {
		if want(s) {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b *agentv1.Service) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return list
}

// put keeps the list in an order that depends on nothing but its elements.
func put(m map[place][]holding, at place, h holding) {
	list := m[at]
	i, _ := slices.BinarySearchFunc(list, h, func(a, b holding) int {
		return cmp.Or(cmp.Compare(b.from, a.from), cmp.Compare(a.key, b.key))
	})
	m[at] = slices.Insert(list, i, h)
}

func remove(m map[place][]holding, at place, key string) {
	rest := slices.DeleteFunc(m[at], func(h holding) bool { return h.key == key })
	if len(rest) == 0 {
		delete(m, at)
		return
	}
	m[at] = rest
}

// addressOf reads an address; ok is false for bytes that are none, or one that many have.
func addressOf(b []byte) (addr netip.Addr, ok bool) {
	addr, ok = netip.AddrFromSlice(b)
	addr = addr.Unmap()
	return addr, ok && !addr.IsUnspecified() && !addr.IsLoopback()
}
