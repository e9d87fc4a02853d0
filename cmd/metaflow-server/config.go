package main

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/config"
	"github.com/metaflowys/metaflow-server/pkg/control"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/gateway"
	"github.com/metaflowys/metaflow-server/pkg/inventory"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/opshttp"
	"github.com/metaflowys/metaflow-server/pkg/otlphttp"
	"github.com/metaflowys/metaflow-server/pkg/query"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/values"
	"github.com/metaflowys/metaflow-server/pkg/writer"
)

// Roles of a server. One process may have any of them.
const (
	roleGateway = "gateway"
	roleWriter  = "writer"
	roleControl = "control"
	roleQuery   = "query"
)

var allRoles = []string{roleGateway, roleWriter, roleControl, roleQuery}

// server is the configuration file of metaflow-server.
type server struct {
	Roles         []string               `mapstructure:"roles" doc:"roles of this process: gateway (OTLP to Kafka), writer (Kafka to ClickHouse), control (agents and their configuration), query (traces for Grafana, Jaeger, MCP and the page /ui)"`
	GRPC          rpc.Config             `mapstructure:"grpc"`
	HTTP          opshttp.Config         `mapstructure:"http"`
	Kafka         kafka.Config           `mapstructure:"kafka"`
	ClickHouse    clickhouse.Config      `mapstructure:"clickhouse"`
	Retention     clickhouse.Retention   `mapstructure:"retention"`
	Migrate       bool                   `mapstructure:"migrate_at_start" doc:"migrate the schema when a writer starts; set false if 'metaflow-server migrate up' does it"`
	Gateway       gateway.Config         `mapstructure:"gateway"`
	Writer        writer.Config          `mapstructure:"writer"`
	FlowWriter    writer.Config          `mapstructure:"flow_writer"`
	Control       control.Config         `mapstructure:"control"`
	Resources     inventory.Config       `mapstructure:"resources"`
	EdgeMetrics   clickhouse.EdgesConfig `mapstructure:"edge_metrics"`
	Query         query.Config           `mapstructure:"query"`
	Log           program.Log            `mapstructure:"log"`
	ShutdownGrace time.Duration          `mapstructure:"shutdown_grace" doc:"how long requests and inserts in flight may take after SIGTERM"`
}

var configured = program.Configured[*server]{New: defaultServer, Variables: []string{chengine.LibraryVariable}}

func defaultServer() *server {
	return &server{
		Roles:         slices.Clone(allRoles),
		GRPC:          rpc.DefaultConfig(),
		HTTP:          opshttp.DefaultConfig(),
		Kafka:         kafka.DefaultConfig(),
		ClickHouse:    clickhouse.DefaultConfig(),
		Retention:     clickhouse.DefaultRetention(),
		Migrate:       true,
		Gateway:       gateway.DefaultConfig(),
		Writer:        writer.DefaultConfig(),
		FlowWriter:    writer.DefaultFlowsConfig(),
		Control:       control.DefaultConfig(),
		Resources:     inventory.DefaultConfig(),
		EdgeMetrics:   clickhouse.DefaultEdgesConfig(),
		Query:         query.DefaultConfig(),
		Log:           program.DefaultLog(),
		ShutdownGrace: 30 * time.Second,
	}
}

// Validate reports every problem at once, each by its key.
func (s *server) Validate() error {
	var errs []error
	if len(s.Roles) == 0 {
		errs = append(errs, errors.New("roles: none is given"))
	}
	for i, r := range s.Roles {
		if !slices.Contains(allRoles, r) {
			errs = append(errs, fmt.Errorf("roles[%d]: %q is not one of %s", i, r, strings.Join(allRoles, ", ")))
		}
	}
	if s.FlowWriter.Group == s.Writer.Group {
		errs = append(errs, fmt.Errorf("flow_writer.group: %q is writer.group too", s.FlowWriter.Group))
	}
	if s.Resources.Group == s.Writer.Group || s.Resources.Group == s.FlowWriter.Group {
		errs = append(errs, fmt.Errorf("resources.group: %q is writer.group or flow_writer.group too", s.Resources.Group))
	}
	errs = append(errs, s.exposed()...)
	errs = append(errs, shared(s.listens())...)
	agentsProve := s.Control.AgentsNeedTokens() || s.GRPC.TLS.ClientCAFile != ""
	if (len(s.Gateway.BearerTokens) > 0 || s.Gateway.BearerTokensFile != "") && !agentsProve {
		errs = append(errs, errors.New("gateway.bearer_tokens: set, but anybody may send as a new agent: set control.agent_tokens, control.group_tokens or grpc.tls.client_ca_file too"))
	}
	if s.Control.CertificateGroups && s.GRPC.TLS.ClientCAFile == "" {
		errs = append(errs, errors.New("control.certificate_groups: true, but without grpc.tls.client_ca_file no agent has a certificate"))
	}
	if s.ShutdownGrace <= 0 {
		errs = append(errs, fmt.Errorf("shutdown_grace: %s is not positive", s.ShutdownGrace))
	}
	return errors.Join(append(errs,
		config.Section("grpc", s.GRPC.Validate()),
		config.Section("http", s.HTTP.Validate()),
		config.Section("kafka", s.Kafka.Validate()),
		config.Section("clickhouse", s.ClickHouse.Validate()),
		config.Section("retention", s.Retention.Validate()),
		config.Section("gateway", s.Gateway.Validate()),
		config.Section("writer", s.Writer.Validate()),
		config.Section("flow_writer", s.FlowWriter.Validate()),
		config.Section("control", s.Control.Validate()),
		config.Section("resources", s.Resources.Validate()),
		config.Section("edge_metrics", s.EdgeMetrics.Validate()),
		config.Section("query", s.Query.Validate()),
		config.Section("log", s.Log.Validate()),
	)...)
}

// otlpHTTP returns the configuration of OTLP/HTTP, with the bounds of OTLP/gRPC.
func (s *server) otlpHTTP() otlphttp.Config {
	cfg := otlphttp.DefaultConfig()
	cfg.Listen, cfg.MaxConnections, cfg.CORS = s.Gateway.HTTPListen, s.Gateway.HTTPMaxConnections, s.Gateway.HTTPCORS
	cfg.MaxRequestBytes, cfg.MaxBytesInFlight, cfg.MaxRequestsInFlight = s.GRPC.MaxRequestBytes, s.GRPC.MaxBytesInFlight, s.GRPC.MaxRequestsInFlight
	cfg.PeerShare, cfg.MaxConnectionsPerPeer = s.GRPC.PeerShare, s.GRPC.MaxConnectionsPerPeer
	cfg.RetryDelay = s.GRPC.RetryDelay
	return cfg
}

// exposed refuses ports that would accept plain text from other hosts although nobody
// asked for that.
func (s *server) exposed() (errs []error) {
	if s.servesPort() {
		errs = append(errs, config.Section("grpc", listening("listen",
			values.CheckExposed(s.GRPC.Listen, s.GRPC.TLS.CertFile != "", s.GRPC.Insecure, "grpc.tls", "grpc.insecure"))))
	}
	if s.has(roleGateway) && s.Gateway.HTTPListen != "" {
		errs = append(errs, config.Section("gateway", listening("http_listen",
			values.CheckExposed(s.Gateway.HTTPListen, s.GRPC.TLS.CertFile != "", s.Gateway.HTTPInsecure, "grpc.tls", "gateway.http_insecure"))))
	}
	if s.has(roleQuery) {
		for _, l := range []struct{ key, address string }{{"http_listen", s.Query.HTTPListen}, {"grpc_listen", s.Query.GRPCListen}} {
			errs = append(errs, config.Section("query", listening(l.key,
				values.CheckExposed(l.address, s.Query.TLS.CertFile != "", s.Query.Insecure, "query.tls", "query.insecure"))))
		}
	}
	return append(errs, config.Section("http", listening("listen",
		values.CheckExposed(s.HTTP.Listen, s.HTTP.TLS.CertFile != "", s.HTTP.Insecure, "http.tls", "http.insecure"))))
}

// listen is an address that this process opens.
type listen struct {
	key     string // or flag
	address string // empty if it is not opened
}

// listens returns the addresses that the roles of this process open.
func (s *server) listens() []listen {
	at := []listen{{"http.listen", s.HTTP.Listen}}
	if s.servesPort() {
		at = append(at, listen{"grpc.listen", s.GRPC.Listen})
	}
	if s.has(roleGateway) {
		at = append(at, listen{"gateway.http_listen", s.Gateway.HTTPListen})
	}
	if s.has(roleQuery) {
		at = append(at, listen{"query.http_listen", s.Query.HTTPListen}, listen{"query.grpc_listen", s.Query.GRPCListen})
	}
	return at
}

// shared returns an error for each two that name the same port.
func shared(all []listen) (errs []error) {
	for i, one := range all {
		for _, other := range all[:i] {
			if samePort(one.address, other.address) {
				errs = append(errs, fmt.Errorf("%s: %s is the port of %s too; choose another one", one.key, one.address, other.key))
			}
		}
	}
	return errs
}

// samePort reports whether only one of two programs could listen on these addresses.
func samePort(one, other string) bool {
	host1, port1, err1 := net.SplitHostPort(one)
	host2, port2, err2 := net.SplitHostPort(other)
	if err1 != nil || err2 != nil || port1 != port2 || port1 == "0" { // others report what is wrong
		return false
	}
	// takes reports whether who listens on host listens on other too.
	takes := func(host, other string) bool {
		return host == other || host == "" || host == "::" || host == "0.0.0.0" && !strings.Contains(other, ":") ||
			host == "127.0.0.1" && other == "localhost"
	}
	return takes(host1, host2) || takes(host2, host1)
}

// listening adds the key to an error of CheckExposed.
func listening(key string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", key, err)
}

// needsKafka reports whether a role of this process uses Kafka. The role query does not.
func (s *server) needsKafka() bool { return s.servesPort() || s.has(roleWriter) }

// servesPort reports whether the gRPC port is served.
func (s *server) servesPort() bool { return s.has(roleGateway) || s.has(roleControl) }

func (s *server) has(role string) bool { return slices.Contains(s.Roles, role) }
