package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// refreshEvery is the maximum age of the list of replicas. Operators change it rarely,
// and a removed replica is skipped as down before.
const refreshEvery = time.Minute

// shards maps shards to addresses and sends work to one of them.
//
// Lock order: mu before a node's own. refreshing serializes the reading of
// system.clusters and is taken before mu.
type shards struct {
	cluster  string
	dialer   *dialer
	maxConns int
	log      *slog.Logger
	seeds    []*node // the configured addresses

	refreshing sync.Mutex

	mu   sync.Mutex
	list [][]*node // by shard, replicas in the cluster's order; nil until known
	read time.Time
}

func newShards(cfg Config, maxConns int, log *slog.Logger) (*shards, error) {
	d, err := newDialer(cfg, log)
	if err != nil {
		return nil, err
	}
	s := &shards{cluster: cfg.Cluster, dialer: d, maxConns: maxConns, log: log}
	for _, addr := range cfg.Addresses {
		s.seeds = append(s.seeds, newNode(addr, d, maxConns))
	}
	if cfg.Cluster == "" {
		s.list = [][]*node{s.seeds}
	}
	return s, nil
}

func (s *shards) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.all() {
		n.close()
	}
}

// all returns every node once. The caller holds mu.
func (s *shards) all() []*node {
	nodes := slices.Clone(s.seeds)
	for _, replicas := range s.list {
		for _, n := range replicas {
			if !slices.Contains(nodes, n) {
				nodes = append(nodes, n)
			}
		}
	}
	return nodes
}

func (s *shards) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.list)
}

// run calls f at one replica of the shard: the first in order that has not failed
// recently, so that all writers prefer the same one. If it cannot connect there, it tries
// the next. Once f was called, run returns its error, because what f sent may be stored.
func (s *shards) run(ctx context.Context, shard int, f use) (addr string, err error) {
	if err := s.refresh(ctx, refreshEvery); err != nil {
		return strings.Join(s.addresses(), ", "), err
	}
	replicas, err := s.replicas(shard)
	if err != nil {
		return s.cluster, err
	}
	var tried []string
	var errs []error
	for _, n := range replicas {
		called, err := n.run(ctx, f)
		if called || err == nil {
			return n.addr, err
		}
		tried, errs = append(tried, n.addr), append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return strings.Join(tried, ", "), errors.Join(errs...)
}

// runAll calls f at every replica of the shard that it can connect to. It fails if it
// reaches none, or if f fails at one.
func (s *shards) runAll(ctx context.Context, shard int, f use) error {
	if err := s.refresh(ctx, refreshEvery); err != nil {
		return err
	}
	replicas, err := s.replicas(shard)
	if err != nil {
		return err
	}
	var errs, unreachable []error
	for _, n := range replicas {
		called, err := n.run(ctx, f)
		switch {
		case err == nil:
		case called:
			errs = append(errs, fmt.Errorf("at %s: %w", n.addr, readable(err)))
		default:
			unreachable = append(unreachable, fmt.Errorf("at %s: %w", n.addr, err))
		}
	}
	if len(unreachable) == len(replicas) {
		errs = append(errs, unreachable...)
	}
	return errors.Join(errs...)
}

// replicas returns the nodes of a shard in the order to try them.
func (s *shards) replicas(shard int) ([]*node, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if shard < 0 || shard >= len(s.list) {
		return nil, fmt.Errorf("shard %d of %d is unknown", shard, len(s.list))
	}
	nodes := slices.Clone(s.list[shard])
	healthyFirst(nodes)
	return nodes, nil
}

// healthyFirst moves the nodes that failed recently behind the others.
func healthyFirst(nodes []*node) {
	now := time.Now()
	slices.SortStableFunc(nodes, func(a, b *node) int { return compareBool(a.down(now), b.down(now)) })
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}

func (s *shards) addresses() []string {
	addrs := make([]string, 0, len(s.seeds))
	for _, n := range s.seeds {
		addrs = append(addrs, n.addr)
	}
	return addrs
}

// refresh reads the cluster again if the list is older than maxAge. After an error the
// known list stays in use; refresh returns the error only if there is none.
func (s *shards) refresh(ctx context.Context, maxAge time.Duration) error {
	if s.cluster == "" || s.fresh(maxAge) {
		return nil
	}
	s.refreshing.Lock()
	defer s.refreshing.Unlock()
	if s.fresh(maxAge) {
		return nil
	}
	err := s.readCluster(ctx)
	if err == nil {
		return nil
	}
	if s.count() == 0 {
		return err
	}
	s.log.Warn("cannot refresh the cluster, keeping the known replicas", slog.String("cluster", s.cluster), slog.Any("error", err))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read = time.Now()
	return nil
}

func (s *shards) fresh(maxAge time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list != nil && time.Since(s.read) < maxAge
}

// readCluster queries the known nodes, one after another, until one responds.
func (s *shards) readCluster(ctx context.Context) error {
	s.mu.Lock()
	nodes := s.all()
	s.mu.Unlock()
	healthyFirst(nodes)
	var errs []error
	for _, n := range nodes {
		var found [][]string
		_, err := n.run(ctx, func(ctx context.Context, c *conn) error {
			var err error
			found, err = selectCluster(ctx, c.client, s.cluster)
			return err
		})
		if err == nil {
			err = s.adopt(found)
		}
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("read cluster %s at %s: %w", s.cluster, n.addr, readable(err)))
	}
	return errors.Join(errs...)
}

// adopt replaces the replicas of every shard and keeps the nodes that remain.
func (s *shards) adopt(found [][]string) error {
	if len(found) == 0 {
		return errors.New("system.clusters does not have it")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.list != nil && len(found) != len(s.list) {
		return fmt.Errorf("it has %d shards and had %d: a retried block would miss its shard; restart to use the new number",
			len(found), len(s.list))
	}
	known := make(map[string]*node)
	for _, n := range s.all() {
		known[n.addr] = n
	}
	list := make([][]*node, len(found))
	for i, addrs := range found {
		for _, addr := range addrs {
			n := known[addr]
			if n == nil {
				n = newNode(addr, s.dialer, s.maxConns)
				known[addr] = n
			}
			list[i] = append(list[i], n)
		}
	}
	before := s.all()
	s.list, s.read = list, time.Now()
	after := s.all()
	for _, n := range before {
		if !slices.Contains(after, n) {
			n.close()
		}
	}
	return nil
}

// selectCluster returns the addresses of each shard, in the cluster's order.
func selectCluster(ctx context.Context, client *ch.Client, name string) ([][]string, error) {
	var (
		shard proto.ColUInt32
		host  proto.ColStr
		port  proto.ColUInt16
		found [][]string
		last  uint32
	)
	err := client.Do(ctx, ch.Query{
		// Config.Validate ensures that the name needs no quoting.
		Body: "SELECT shard_num, host_name, port FROM system.clusters WHERE cluster = '" + name + "' ORDER BY shard_num, replica_num",
		Result: proto.Results{
			{Name: "shard_num", Data: &shard},
			{Name: "host_name", Data: &host},
			{Name: "port", Data: &port},
		},
		OnResult: func(context.Context, proto.Block) error {
			for i := range shard.Rows() {
				if shard.Row(i) != last {
					found, last = append(found, nil), shard.Row(i)
				}
				addr := net.JoinHostPort(host.Row(i), strconv.Itoa(int(port.Row(i))))
				found[len(found)-1] = append(found[len(found)-1], addr)
			}
			return nil
		},
	})
	return found, err
}
