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
	// slack is how far outside its holding time an address is still attributed to its
	// holder. It is several times the clock difference tolerated elsewhere.
	slack = 5 * time.Second
	// aliveWithin is how long after the newest status of a node other nodes with the same
	// address also count as alive.
	aliveWithin = 5 * time.Minute
)

// Kind is the kind of object that holds an address.
type Kind uint8

// Kinds of holders.
const (
	Nobody Kind = iota
	Pod
	Service
	Node
)

// Holder is the holder of an address. Fields that do not apply to its kind are empty.
type Holder struct {
	Kind      Kind
	Namespace string
	Name      string // of the pod, service or node
	UID       string // of the pod
	Node      string // of the pod; for a node, its name
	Workload  string // of the pod
}

// place is an address in a cluster; hosts outside Kubernetes have no cluster.
type place struct {
	cluster string
	address netip.Addr
}

// holding is a period in which an object held an address, in nanoseconds; to is 0 while
// it lasts.
type holding struct {
	key      string // of its record
	from, to uint64
	holder   Holder
}

// host is a node with an address.
type host struct {
	key, node string
	seen      uint64
}

// Index is the state of the records of metaflow.resources. Create it with New.
type Index struct {
	pods     map[string]*agentv1.Pod // by key, like the other maps
	services map[string]*agentv1.Service
	agents   map[string]*agentv1.AgentStatus

	byPod     map[place][]holding // latest start first
	byService map[place][]holding
	byHost    map[place][]host
}

// New returns an empty Index.
func New() *Index {
	x := &Index{}
	x.Forget()
	return x
}

// Forget empties the index, as before the first record.
func (x *Index) Forget() {
	*x = Index{
		pods: map[string]*agentv1.Pod{}, services: map[string]*agentv1.Service{}, agents: map[string]*agentv1.AgentStatus{},
		byPod: map[place][]holding{}, byService: map[place][]holding{}, byHost: map[place][]host{},
	}
}

// Observe applies a record. A nil value removes the object. Observe skips records of
// other kinds. An error means that the record is malformed and changed nothing.
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

// errMisplaced is the error of a record whose content belongs to another key.
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

// PutPod is Observe for a pod's decoded record. p must not be changed afterwards.
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

// PutService is Observe for a service's decoded record. s must not be changed afterwards.
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

// eachAddress calls f once for each address at which others may reach a host.
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

// Lookup returns who held an address in a cluster at the given time, in nanoseconds. It
// does not allocate.
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

// heldAt returns the holding at the given time, or within slack of it, or nil.
func heldAt(held []holding, at uint64) *holding {
	var near *holding
	best := uint64(slack) + 1
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

// Pod returns the record of a pod, or nil. Like all records returned by an Index, it must
// not be changed.
func (x *Index) Pod(cluster, uid string) *agentv1.Pod {
	return x.pods[PodKey(&agentv1.Pod{Cluster: cluster, Uid: uid})]
}

// Service returns the record of a service, or nil.
func (x *Index) Service(cluster, namespace, name string) *agentv1.Service {
	return x.services[ServiceKey(&agentv1.Service{Cluster: cluster, Namespace: namespace, Name: name})]
}

// Agent returns the status of an agent, or nil if it is not registered.
func (x *Index) Agent(id string) *agentv1.AgentStatus { return x.agents[schema.KeyAgent+id] }

// Agents returns the agents registered in a cluster.
func (x *Index) Agents(cluster string) (list []*agentv1.AgentStatus) {
	for _, status := range x.agents {
		if status.Registration.Cluster == cluster {
			list = append(list, status)
		}
	}
	return list
}

// Living returns the pods of a node that have not ended, ordered by uid.
func (x *Index) Living(cluster, node string) []*agentv1.Pod {
	return x.podsWhere(func(p *agentv1.Pod) bool { return p.EndTimeUnixNano == 0 && p.Cluster == cluster && p.Node == node })
}

// Stale returns the pods and services that have not ended and were not reported since.
func (x *Index) Stale(since uint64) ([]*agentv1.Pod, []*agentv1.Service) {
	return x.podsWhere(func(p *agentv1.Pod) bool { return p.EndTimeUnixNano == 0 && p.SeenTimeUnixNano < since }),
		x.servicesWhere(func(s *agentv1.Service) bool { return s.EndTimeUnixNano == 0 && s.SeenTimeUnixNano < since })
}

// Ended returns the pods and services that ended before the given time.
func (x *Index) Ended(before uint64) ([]*agentv1.Pod, []*agentv1.Service) {
	return x.podsWhere(func(p *agentv1.Pod) bool { return p.EndTimeUnixNano != 0 && p.EndTimeUnixNano < before }),
		x.servicesWhere(func(s *agentv1.Service) bool { return s.EndTimeUnixNano != 0 && s.EndTimeUnixNano < before })
}

// Count returns the number of known pods and services, including ended ones.
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

// put inserts h into an order that depends only on the elements.
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

// addressOf decodes an address. ok is false for malformed and for shared addresses.
func addressOf(b []byte) (addr netip.Addr, ok bool) {
	addr, ok = netip.AddrFromSlice(b)
	addr = addr.Unmap()
	return addr, ok && !addr.IsUnspecified() && !addr.IsLoopback()
}
