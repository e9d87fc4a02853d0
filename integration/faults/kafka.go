package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/metaflowys/metaflow-server/pkg/embedded/broker"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
)

// brokerVariable turns this program into the embedded broker: listen, advertised
// address and data directory, separated by bars.
const brokerVariable = "FAULTS_BROKER"

// maybeServeBroker serves if this process was started as the embedded broker.
func maybeServeBroker() {
	text, ok := os.LookupEnv(brokerVariable)
	if !ok {
		return
	}
	words := strings.Split(text, "|")
	_, err := broker.Start(broker.Options{Listen: words[0], Advertise: words[1], DataDir: words[2]})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	select {}
}

// cluster is the brokers, and a client to them on which no fault is put.
type cluster struct {
	apache  bool
	brokers []*program
	direct  []string  // addresses of the brokers
	links   [][]*link // of each server to each broker; the servers share those of the embedded broker
	dirs    []string  // data of each broker
	client  *kgo.Client
	tables  *kafka.Client // creates topics as servers do
}

// bootstrap is what a server connects to.
func (c *cluster) bootstrap(server int) []string {
	var addrs []string
	for _, l := range c.links[server%len(c.links)] {
		addrs = append(addrs, l.addr())
	}
	return addrs
}

func (c *cluster) close() {
	if c.client != nil {
		c.client.Close()
	}
	if c.tables != nil {
		c.tables.Close()
	}
	for _, b := range c.brokers {
		b.kill()
	}
	for _, of := range c.links {
		for _, l := range of {
			l.close()
		}
	}
}

// logs opens the log of a program.
type logs func(name string) io.Writer

// embeddedKafka starts the embedded broker.
func embeddedKafka(dir string, addrs *addresses, log logs, event func(string, ...any)) (*cluster, error) {
	c := &cluster{direct: []string{addrs.next()}, dirs: []string{dir}}
	l, err := newLink("servers-broker", addrs.next(), c.direct[0], kafkaWire)
	if err != nil {
		return nil, err
	}
	c.links = [][]*link{{l}}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	value := brokerVariable + "=" + strings.Join([]string{c.direct[0], l.addr(), dir}, "|")
	p := &program{name: "broker-1", log: log("broker-1"), event: event, command: func() *exec.Cmd {
		cmd := exec.Command(self)
		cmd.Env = environment(value)
		return cmd
	}}
	c.brokers = []*program{p}
	return c, p.start()
}

// apacheKafka starts three brokers of Apache Kafka that are controllers, too. Each has
// a listener for each server, so that the way from one server to one broker is a link.
func apacheKafka(jars, dir string, servers int, addrs *addresses, log logs, event func(string, ...any)) (*cluster, error) {
	const nodes = 3
	c := &cluster{apache: true, links: make([][]*link, servers)}
	var voters, controllers []string
	for i := range nodes {
		c.direct = append(c.direct, addrs.next())
		controllers = append(controllers, addrs.next())
		voters = append(voters, fmt.Sprintf("%d@%s", i+1, controllers[i]))
	}
	java, err := exec.LookPath("java")
	if err != nil {
		return nil, err
	}
	run := func(class string, args ...string) *exec.Cmd {
		cmd := exec.Command(java, append([]string{ //nolint:gosec // what `make kafka` has fetched
			"-Xmx320m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", filepath.Join(jars, "*"), class,
		}, args...)...)
		cmd.Env = environment()
		return cmd
	}
	var formats sync.WaitGroup
	failed := make([]error, nodes)
	for i := range nodes {
		node := fmt.Sprintf("broker-%d", i+1)
		data := filepath.Join(dir, node)
		c.dirs = append(c.dirs, data)
		if err := os.MkdirAll(data, 0o750); err != nil {
			return c, err
		}
		listeners := []string{"INTERNAL://" + c.direct[i], "CONTROLLER://" + controllers[i]}
		advertised := []string{"INTERNAL://" + c.direct[i]}
		protocols := []string{"INTERNAL:PLAINTEXT", "CONTROLLER:PLAINTEXT"}
		for s := range servers {
			at := addrs.next()
			l, err := newLink(fmt.Sprintf("server-%d-%s", s+1, node), addrs.next(), at, kafkaWire)
			if err != nil {
				return c, err
			}
			c.links[s] = append(c.links[s], l)
			name := fmt.Sprintf("S%d", s+1)
			listeners = append(listeners, name+"://"+at)
			advertised = append(advertised, name+"://"+l.addr())
			protocols = append(protocols, name+":PLAINTEXT")
		}
		properties := filepath.Join(dir, node+".properties")
		text := strings.Join([]string{
			"process.roles=broker,controller", fmt.Sprintf("node.id=%d", i+1),
			"controller.quorum.voters=" + strings.Join(voters, ","),
			"controller.listener.names=CONTROLLER", "inter.broker.listener.name=INTERNAL",
			"listeners=" + strings.Join(listeners, ","), "advertised.listeners=" + strings.Join(advertised, ","),
			"listener.security.protocol.map=" + strings.Join(protocols, ","),
			"log.dirs=" + filepath.Join(data, "data"),
			"default.replication.factor=3", "min.insync.replicas=2", "offsets.topic.replication.factor=3", "offsets.topic.num.partitions=3",
			"transaction.state.log.replication.factor=3", "transaction.state.log.min.isr=2",
			"share.coordinator.state.topic.replication.factor=3", "share.coordinator.state.topic.min.isr=2",
			"group.initial.rebalance.delay.ms=100", "auto.create.topics.enable=false",
			// A second, the default, is too short for an answer on a busy machine.
			"controller.quorum.election.timeout.ms=4000", "controller.quorum.fetch.timeout.ms=5000", "controller.quorum.request.timeout.ms=5000",
			"broker.session.timeout.ms=6000", "broker.heartbeat.interval.ms=1000", "replica.lag.time.max.ms=6000",
		}, "\n")
		if err := os.WriteFile(properties, []byte(text), 0o600); err != nil {
			return c, err
		}
		formats.Go(func() {
			format := run("kafka.tools.StorageTool", "format", "--cluster-id", "bWV0YWZsb3ctdGVzdHMhIQ", "--config", properties)
			if out, err := format.CombinedOutput(); err != nil {
				failed[i] = fmt.Errorf("format the data of %s: %w: %s", node, err, out)
			}
		})
		c.brokers = append(c.brokers, &program{name: node, log: log(node), event: event, command: func() *exec.Cmd {
			return run("kafka.Kafka", properties)
		}})
	}
	formats.Wait()
	if err := errors.Join(failed...); err != nil {
		return c, err
	}
	for _, b := range c.brokers {
		if err := b.start(); err != nil {
			return c, err
		}
	}
	return c, nil
}

// connect waits until the brokers serve.
func (c *cluster) connect(ctx context.Context) (err error) {
	if c.client, err = kgo.NewClient(kgo.SeedBrokers(c.direct...), kgo.MetadataMaxAge(5*time.Second), kgo.RetryTimeout(10*time.Second)); err != nil {
		return err
	}
	cfg := kafka.DefaultConfig()
	cfg.Brokers, cfg.Replication, cfg.Partitions = c.direct, len(c.brokers), partitions
	if c.tables, err = kafka.New(cfg, kafka.Options{}); err != nil {
		return err
	}
	return c.inSync(ctx)
}

// metadata asks for topics; none means all.
func (c *cluster) metadata(ctx context.Context, topics ...string) (*kmsg.MetadataResponse, error) {
	req := kmsg.NewPtrMetadataRequest()
	for _, name := range topics {
		topic := kmsg.NewMetadataRequestTopic()
		topic.Topic = kmsg.StringPtr(name)
		req.Topics = append(req.Topics, topic)
	}
	return req.RequestWith(ctx, c.client)
}

// inSync waits until every broker is there and every partition has all its
// replicas in sync.
func (c *cluster) inSync(ctx context.Context) error {
	return retried(ctx, func(ctx context.Context) error {
		for _, addr := range c.direct { // the others notice only after a while that one is gone
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
			if err != nil {
				return err
			}
			_ = conn.Close()
		}
		resp, err := c.metadata(ctx)
		if err != nil {
			return err
		}
		if len(resp.Brokers) < len(c.brokers) {
			return fmt.Errorf("%d of %d brokers are up", len(resp.Brokers), len(c.brokers))
		}
		for _, topic := range resp.Topics {
			for _, p := range topic.Partitions {
				if p.Leader < 0 || len(p.ISR) < len(p.Replicas) {
					return fmt.Errorf("%s/%d: leader %d, in sync %v of %v", *topic.Topic, p.Partition, p.Leader, p.ISR, p.Replicas)
				}
			}
		}
		return nil
	})
}

// leader returns the broker's index that leads a partition.
func (c *cluster) leader(ctx context.Context, topic string, partition int32) (int, error) {
	resp, err := c.metadata(ctx, topic)
	if err != nil {
		return 0, err
	}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			if p.Partition == partition && p.Leader > 0 {
				return int(p.Leader) - 1, nil
			}
		}
	}
	return 0, fmt.Errorf("%s/%d has no leader", topic, partition)
}

// electPreferred gives every partition back to its first replica.
func (c *cluster) electPreferred(ctx context.Context) error {
	req := kmsg.NewPtrElectLeadersRequest()
	req.TimeoutMillis = 10_000
	_, err := req.RequestWith(ctx, c.client)
	return err
}

func (c *cluster) deleteGroup(ctx context.Context, group string) error {
	return retried(ctx, func(ctx context.Context) error {
		req := kmsg.NewPtrDeleteGroupsRequest()
		req.Groups = []string{group}
		resp, err := req.RequestWith(ctx, c.client)
		if err != nil {
			return err
		}
		err = kerr.ErrorForCode(resp.Groups[0].ErrorCode)
		if errors.Is(err, kerr.GroupIDNotFound) {
			return nil
		}
		return err
	})
}

// committed returns what a group has committed, and with what words.
func (c *cluster) committed(ctx context.Context, group, topic string) (map[int32]kmsg.OffsetFetchResponseGroupTopicPartition, error) {
	resp, err := c.metadata(ctx, topic)
	if err != nil {
		return nil, err
	}
	req := kmsg.NewPtrOffsetFetchRequest()
	g := kmsg.NewOffsetFetchRequestGroup()
	g.Group = group
	t := kmsg.NewOffsetFetchRequestGroupTopic()
	t.Topic, t.TopicID = topic, resp.Topics[0].TopicID
	old := kmsg.NewOffsetFetchRequestTopic()
	old.Topic = topic
	for _, p := range resp.Topics[0].Partitions {
		t.Partitions = append(t.Partitions, p.Partition)
		old.Partitions = append(old.Partitions, p.Partition)
	}
	g.Topics = append(g.Topics, t)
	req.Groups, req.Group, req.Topics = append(req.Groups, g), group, append(req.Topics, old)
	fetched, err := req.RequestWith(ctx, c.client)
	if err != nil {
		return nil, err
	}
	found := make(map[int32]kmsg.OffsetFetchResponseGroupTopicPartition)
	for _, g := range fetched.Groups {
		for _, t := range g.Topics {
			for _, p := range t.Partitions {
				found[p.Partition] = p
			}
		}
	}
	for _, t := range fetched.Topics {
		for _, p := range t.Partitions {
			found[p.Partition] = kmsg.OffsetFetchResponseGroupTopicPartition{Partition: p.Partition, Offset: p.Offset, LeaderEpoch: p.LeaderEpoch, Metadata: p.Metadata}
		}
	}
	return found, nil
}

// reset commits other offsets for a group without members, as an operator does.
func (c *cluster) reset(ctx context.Context, group, topic string, offsets map[int32]int64) error {
	return retried(ctx, func(ctx context.Context) error {
		resp, err := c.metadata(ctx, topic)
		if err != nil {
			return err
		}
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Group, req.Generation = group, -1
		t := kmsg.NewOffsetCommitRequestTopic()
		t.Topic, t.TopicID = topic, resp.Topics[0].TopicID
		for partition, offset := range offsets {
			p := kmsg.NewOffsetCommitRequestTopicPartition()
			p.Partition, p.Offset = partition, offset
			t.Partitions = append(t.Partitions, p)
		}
		req.Topics = append(req.Topics, t)
		answer, err := req.RequestWith(ctx, c.client)
		if err != nil {
			return err
		}
		for _, t := range answer.Topics {
			for _, p := range t.Partitions {
				if p.ErrorCode != 0 {
					return fmt.Errorf("commit for %s/%d: %w", topic, p.Partition, kerr.ErrorForCode(p.ErrorCode))
				}
			}
		}
		return nil
	})
}

func (c *cluster) grow(ctx context.Context, topic string, more int) (int, error) {
	resp, err := c.metadata(ctx, topic)
	if err != nil {
		return 0, err
	}
	count := len(resp.Topics[0].Partitions) + more
	req := kmsg.NewPtrCreatePartitionsRequest()
	t := kmsg.NewCreatePartitionsRequestTopic()
	t.Topic, t.Count = topic, int32(count)
	req.Topics, req.TimeoutMillis = append(req.Topics, t), 10_000
	answer, err := req.RequestWith(ctx, c.client)
	if err != nil {
		return 0, err
	}
	return count, kerr.ErrorForCode(answer.Topics[0].ErrorCode)
}

func (c *cluster) deleteTopic(ctx context.Context, topic string) error {
	req := kmsg.NewPtrDeleteTopicsRequest()
	t := kmsg.NewDeleteTopicsRequestTopic()
	t.Topic = kmsg.StringPtr(topic)
	req.Topics, req.TopicNames, req.TimeoutMillis = append(req.Topics, t), []string{topic}, 10_000
	resp, err := req.RequestWith(ctx, c.client)
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(resp.Topics[0].ErrorCode)
}

// ends returns where each partition of a topic ends.
func (c *cluster) ends(ctx context.Context, topic string) (map[int32]int64, error) {
	resp, err := c.metadata(ctx, topic)
	if err != nil {
		return nil, err
	}
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID = -1
	t := kmsg.NewListOffsetsRequestTopic()
	t.Topic = topic
	for _, p := range resp.Topics[0].Partitions {
		lp := kmsg.NewListOffsetsRequestTopicPartition()
		lp.Partition, lp.Timestamp = p.Partition, -1
		t.Partitions = append(t.Partitions, lp)
	}
	req.Topics = append(req.Topics, t)
	ends := make(map[int32]int64)
	for _, shard := range c.client.RequestSharded(ctx, req) {
		if shard.Err != nil {
			return nil, shard.Err
		}
		for _, t := range shard.Resp.(*kmsg.ListOffsetsResponse).Topics { //nolint:forcetypeassert // the request's response
			for _, p := range t.Partitions {
				if p.ErrorCode != 0 {
					return nil, kerr.ErrorForCode(p.ErrorCode)
				}
				ends[p.Partition] = p.Offset
			}
		}
	}
	return ends, nil
}

// truncate takes bytes from the end of the last segment of a partition, at a broker that
// does not run.
func (c *cluster) truncate(brokerIndex int, topic string, partition int32, bytes int64) (int64, error) {
	files, err := filepath.Glob(filepath.Join(c.dirs[brokerIndex], "data", topic+"-"+strconv.Itoa(int(partition)), "*.log"))
	if err != nil || len(files) == 0 {
		return 0, err
	}
	last := files[len(files)-1] // Glob sorts
	info, err := os.Stat(last)
	if err != nil {
		return 0, err
	}
	bytes = min(bytes, info.Size())
	return bytes, os.Truncate(last, info.Size()-bytes)
}

// loopback returns a loopback address of this process's own, so that several runs may go on at a time.
func loopback(n int) string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 1+pid>>8&0x7f, pid&0xff, n)
}

// addresses gives out addresses that nothing listens on, outside the range from which
// outgoing connections take their ports.
type addresses struct{ port int }

func (a *addresses) next() string {
	for {
		if a.port++; a.port <= 10_000 || a.port > 32_000 {
			a.port = 10_001
		}
		addr := net.JoinHostPort(loopback(1), strconv.Itoa(a.port))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		_ = l.Close()
		return addr
	}
}
