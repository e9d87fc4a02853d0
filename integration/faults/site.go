package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/metaflowys/metaflow-server/schema"
)

const (
	partitions = 6
	servers    = 3
	gateways   = 2 // the first of the servers
	agents     = 2

	// sessionTimeout is the shortest that Kafka allows, so that a run has room for many
	// sessions that end.
	sessionTimeout = 6 * time.Second
	// rememberedTokens is how many blocks ClickHouse remembers, instead of ten thousand. Three
	// writers make at most ten a second, so it is enough for the half minute in which a
	// writer repeats a block, and too little for the longest time for which one is stopped.
	rememberedTokens = 400

	spanGroup = "metaflow-writer"
	flowGroup = "metaflow-flow-writer"
)

// site is all programs of a run, and the links between them.
type site struct {
	o      options
	dir    string
	events *os.File
	begun  time.Time
	clocks clocks

	store   *store
	kafka   *cluster
	servers []*server
	agents  []*agent
	load    *load

	toStore  []*link // of each server
	toServer []*link // of senders to each gateway
	toAgent  []*link // of senders to each agent
	between  []*link // of each agent to each gateway

	mounted []string

	mu    sync.Mutex
	files []*os.File
}

// server is a program of the server, and where it serves.
type server struct {
	*program
	http  string
	old   atomic.Bool // runs the program of the earlier commit
	roles string
}

type agent struct {
	*program
	http  string
	otlp  string
	spool string
	old   atomic.Bool
}

// newSite starts everything, in the order of the data path from its end.
func newSite(ctx context.Context, o options, dir string) (s *site, err error) {
	s = &site{o: o, dir: dir, begun: time.Now()}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.events, err = os.Create(filepath.Join(dir, "events.log")); err != nil {
		return s, err
	}
	if o.clocks {
		s.clocks = newClocks(dir)
		s.clocks.overlay = o.overlay
	}
	var addrs addresses

	for _, v := range s.clocks.forC("clickhouse") { // chengine takes our environment
		name, value, _ := strings.Cut(v, "=")
		if err := os.Setenv(name, value); err != nil {
			return s, err
		}
	}
	if s.store, err = startStore(ctx, filepath.Join(dir, "clickhouse"), s.log("clickhouse"), s.event); err != nil {
		return s, err
	}
	brokers := filepath.Join(dir, "brokers")
	if err := os.MkdirAll(brokers, 0o750); err != nil {
		return s, err
	}
	if o.engine == "apache" {
		for i := range 3 {
			if err := s.mount(filepath.Join(brokers, fmt.Sprintf("broker-%d", i+1)), brokerBytes); err != nil {
				return s, err
			}
		}
		s.kafka, err = apacheKafka(o.jars, brokers, servers, &addrs, s.log, s.event)
	} else {
		s.kafka, err = embeddedKafka(brokers, &addrs, s.log, s.event)
	}
	if err != nil {
		return s, err
	}
	if err := s.kafka.connect(ctx); err != nil {
		return s, err
	}
	if err := s.startServers(ctx, &addrs); err != nil {
		return s, err
	}
	if err := s.startAgents(ctx, &addrs); err != nil {
		return s, err
	}
	for _, table := range []string{"spans_local", "flows_local"} {
		err := s.store.exec(ctx, fmt.Sprintf("ALTER TABLE metaflow.%s MODIFY SETTING non_replicated_deduplication_window = %d", table, rememberedTokens))
		if err != nil {
			return s, err
		}
	}
	return s, s.startLoad()
}

func (s *site) startServers(ctx context.Context, addrs *addresses) error {
	for i := range servers {
		l, err := newLink(fmt.Sprintf("server-%d-clickhouse", i+1), addrs.next(), s.store.addr, clickhouseWire)
		if err != nil {
			return err
		}
		s.toStore = append(s.toStore, l)
		roles := "writer"
		if i < gateways {
			roles = "gateway,writer"
		}
		if i == 0 {
			roles = "gateway,control,writer"
		}
		grpc := addrs.next()
		srv, err := s.newServer(fmt.Sprintf("server-%d", i+1), roles, grpc, addrs.next(), i)
		if err != nil {
			return err
		}
		s.servers = append(s.servers, srv)
		if i < gateways {
			to, err := newLink(fmt.Sprintf("senders-server-%d", i+1), addrs.next(), grpc, opaque)
			if err != nil {
				return err
			}
			s.toServer = append(s.toServer, to)
		}
		if err := srv.start(); err != nil {
			return err
		}
	}
	for _, srv := range s.servers {
		if err := s.ready(ctx, srv.name, srv.http); err != nil {
			return err
		}
	}
	return nil
}

// newServer returns a server that reaches the engines over the links of the server with this
// index.
func (s *site) newServer(name, roles, grpc, http string, links int) (*server, error) {
	config := filepath.Join(s.dir, name+".yaml")
	yaml := fmt.Sprintf(`roles: [%s]
grpc: {listen: %q, retry_delay: 200ms}
http: {listen: %q}
gateway: {accept_future: 24h}
kafka: {brokers: [%s], partitions: %d, replication: %d, produce_timeout: 4s}
clickhouse: {addresses: [%q], dial_timeout: 3s, query_timeout: 15s}
writer: {max_batch_wait: 300ms, session_timeout: %s}
flow_writer: {max_batch_wait: 300ms, session_timeout: %s}
log: {format: text}
shutdown_grace: 10s
`, roles, grpc, http, quoted(s.kafka.bootstrap(links)), partitions, len(s.kafka.brokers), s.toStore[links].addr(), sessionTimeout, sessionTimeout)
	if err := os.WriteFile(config, []byte(yaml), 0o600); err != nil {
		return nil, err
	}
	srv := &server{http: http, roles: roles}
	srv.old.Store(s.o.oldBin != "")
	srv.program = &program{name: name, log: s.log(name), event: s.event, command: func() *exec.Cmd {
		cmd := exec.Command(s.binary("metaflow-server", srv.old.Load()), "serve", "--config", config) //nolint:gosec // built here
		cmd.Env = environment(s.clocks.forGo(name)...)
		return cmd
	}}
	return srv, nil
}

func (s *site) binary(name string, old bool) string {
	if old {
		return filepath.Join(s.o.oldBin, name)
	}
	return filepath.Join(s.o.bin, name)
}

func quoted(words []string) string { return `"` + strings.Join(words, `", "`) + `"` }

// startAgents starts the agents, each on an address of its own, because the port is the same for
// the whole group.
func (s *site) startAgents(ctx context.Context, addrs *addresses) error {
	_, port, _ := net.SplitHostPort(addrs.next())
	for i := range agents {
		var upstream []string
		for g := range gateways {
			l, err := newLink(fmt.Sprintf("agent-%d-server-%d", i+1, g+1), addrs.next(), s.toServer[g].target, opaque)
			if err != nil {
				return err
			}
			s.between = append(s.between, l)
			upstream = append(upstream, l.addr())
		}
		name := fmt.Sprintf("agent-%d", i+1)
		bind := loopback(i + 2)
		a := &agent{http: addrs.next(), otlp: net.JoinHostPort(bind, port), spool: filepath.Join(s.dir, name)}
		config := filepath.Join(s.dir, name+".yaml")
		yaml := fmt.Sprintf(`server: {addresses: [%s], timeout: 6s, connect_timeout: 2s, max_backoff: 2s}
name: %s
id: %s
spool: {dir: %q}
otlp: {bind_address: %s, live_timeout: 3s}
kubernetes: {enabled: "false"}
http: {listen: %q}
log: {format: text}
`, quoted(upstream), name, name, a.spool, bind, a.http)
		if err := os.WriteFile(config, []byte(yaml), 0o600); err != nil {
			return err
		}
		a.old.Store(s.o.oldBin != "")
		a.program = &program{name: name, log: s.log(name), event: s.event, command: func() *exec.Cmd {
			cmd := exec.Command(s.binary("metaflow-agent", a.old.Load()), "run", "--config", config) //nolint:gosec // built here
			cmd.Env = environment(s.clocks.forGo(name)...)
			return cmd
		}}
		if err := s.mount(a.spool, spoolBytes); err != nil {
			return err
		}
		l, err := newLink("senders-"+name, addrs.next(), a.otlp, opaque)
		if err != nil {
			return err
		}
		s.toAgent, s.agents = append(s.toAgent, l), append(s.agents, a)
		if err := a.start(); err != nil {
			return err
		}
	}
	return s.configureAgents(ctx, port)
}

// configureAgents makes the agents listen.
func (s *site) configureAgents(ctx context.Context, port string) error {
	file := filepath.Join(s.dir, "group.yaml")
	yaml := "inputs: {integration: {enabled: true, listen_port: " + port + "}}\n"
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		return err
	}
	host, api, _ := net.SplitHostPort(s.servers[0].http)
	ctl := func(ctx context.Context, args ...string) ([]byte, error) {
		out, err := exec.CommandContext(ctx, s.binary("metaflow-ctl", false), append(args, "-i", host, "--api-port", api)...).CombinedOutput() //nolint:gosec // built here
		if err != nil {
			err = fmt.Errorf("metaflow-ctl %v: %w: %s", args, err, out)
		}
		return out, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return retried(ctx, func(ctx context.Context) error {
		list, err := ctl(ctx, "agent-group", "list")
		if err != nil {
			return err
		}
		id := regexp.MustCompile(`(?m)^default\s+(g-[0-9a-z]{10})\b`).FindSubmatch(list)
		if id == nil {
			return fmt.Errorf("no group default in %q", list)
		}
		if _, err := ctl(ctx, "agent-group-config", "update", string(id[1]), "-f", file); err != nil {
			return err
		}
		for _, a := range s.agents {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", a.otlp)
			if err != nil {
				return err
			}
			_ = conn.Close()
		}
		return nil
	})
}

func (s *site) startLoad() (err error) {
	var toServers, toAgents []string
	for _, l := range s.toServer {
		toServers = append(toServers, l.addr())
	}
	for _, l := range s.toAgent {
		toAgents = append(toAgents, l.addr())
	}
	s.load, err = startLoad(s.o.rate, s.o.items, s.o.collectors, toServers, toAgents)
	return err
}

// ready waits until a server reports that it is ready.
func (s *site) ready(ctx context.Context, name, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	return retried(ctx, func(ctx context.Context) error {
		status, body, err := get(ctx, "http://"+addr+"/ready")
		if err == nil && status != 200 {
			err = fmt.Errorf("%s is not ready: %s", name, body)
		}
		return err
	})
}

// links is every link of the site.
func (s *site) links() []*link {
	all := append([]*link(nil), s.toStore...)
	all = append(append(append(all, s.toServer...), s.toAgent...), s.between...)
	if s.kafka != nil {
		for _, of := range s.kafka.links {
			all = append(all, of...)
		}
	}
	return all
}

// log returns the log of a program; it goes on over restarts.
func (s *site) log(name string) io.Writer {
	f, err := os.OpenFile(filepath.Join(s.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return io.Discard
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files = append(s.files, f)
	return f
}

// event writes down what happens.
func (s *site) event(format string, args ...any) {
	line := fmt.Sprintf("%s %7.1fs ", time.Now().Format("15:04:05.000"), time.Since(s.begun).Seconds()) + fmt.Sprintf(format, args...) + "\n"
	_, _ = s.events.WriteString(line)
	if s.o.verbose {
		_, _ = os.Stderr.WriteString(line)
	}
}

// close ends all programs.
func (s *site) close() {
	if s.load != nil {
		s.load.stop()
		s.load.kill()
		s.load.senders.Wait()
	}
	for _, a := range s.agents {
		a.kill()
	}
	for _, srv := range s.servers {
		srv.kill()
	}
	if s.kafka != nil {
		s.kafka.close()
	}
	if s.store != nil {
		if s.store.conn != nil {
			_ = s.store.conn.Close()
		}
		s.store.stop()
	}
	for _, l := range append(append(append(append([]*link(nil), s.toStore...), s.toServer...), s.toAgent...), s.between...) {
		l.close()
	}
	s.unmount()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.files {
		_ = f.Close()
	}
}

// deadLetters counts the records in the topic of dead letters.
func (s *site) deadLetters(ctx context.Context) (n int64, err error) {
	ends, err := s.kafka.ends(ctx, schema.TopicDeadLetter)
	for _, end := range ends {
		n += end
	}
	return n, err
}

// parked counts the requests that agents have parked.
func (s *site) parked() (n int) {
	for _, a := range s.agents {
		_ = filepath.WalkDir(filepath.Join(a.spool, "parked"), func(_ string, e os.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				n++
			}
			return nil
		})
	}
	return n
}

// crashes returns what programs logged that no program should.
func (s *site) crashes() error {
	var errs []error
	for _, pattern := range []string{"server-*.log", "agent-*.log"} {
		files, _ := filepath.Glob(filepath.Join(s.dir, pattern))
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			for _, mark := range []string{"\npanic: ", "\nfatal error: ", "WARNING: DATA RACE"} {
				if i := bytes.Index(text, []byte(mark)); i >= 0 {
					errs = append(errs, fmt.Errorf("%s: %q", filepath.Base(file), text[i:min(len(text), i+300)]))
				}
			}
		}
	}
	return errors.Join(errs...)
}
