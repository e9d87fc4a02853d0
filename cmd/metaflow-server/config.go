package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/config"
	"github.com/metaflowys/metaflow-server/pkg/control"
	"github.com/metaflowys/metaflow-server/pkg/gateway"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/opshttp"
	"github.com/metaflowys/metaflow-server/pkg/otlpgrpc"
	"github.com/metaflowys/metaflow-server/pkg/writer"
)

const envPrefix = "METAFLOW"

// Roles of a server. One process may have any of them.
const (
	roleGateway = "gateway"
	roleWriter  = "writer"
	roleControl = "control"
)

var allRoles = []string{roleGateway, roleWriter, roleControl}

// server is the configuration file of metaflow-server.
type server struct {
	Roles         []string             `mapstructure:"roles" doc:"what this process does: gateway (OTLP to Kafka), writer (Kafka to ClickHouse), control (agents and their configuration)"`
	GRPC          otlpgrpc.Config      `mapstructure:"grpc"`
	HTTP          opshttp.Config       `mapstructure:"http"`
	Kafka         kafka.Config         `mapstructure:"kafka"`
	ClickHouse    clickhouse.Config    `mapstructure:"clickhouse"`
	Retention     clickhouse.Retention `mapstructure:"retention"`
	Migrate       bool                 `mapstructure:"migrate_at_start" doc:"bring the schema up to date when a writer starts; false where 'metaflow-server migrate up' does it"`
	Gateway       gateway.Config       `mapstructure:"gateway"`
	Writer        writer.Config        `mapstructure:"writer"`
	Control       control.Config       `mapstructure:"control"`
	Log           logging              `mapstructure:"log"`
	ShutdownGrace time.Duration        `mapstructure:"shutdown_grace" doc:"how long requests and inserts under way may take after SIGTERM"`
}

type logging struct {
	Level  string `mapstructure:"level" doc:"debug, info, warn or error"`
	Format string `mapstructure:"format" doc:"json or text"`
}

// maxMessageOverhead is by how much the topic's limit lies above the largest
// record: headers and the framing of a batch.
const maxMessageOverhead = 64 << 10

func defaultServer() *server {
	return &server{
		Roles:         slices.Clone(allRoles),
		GRPC:          otlpgrpc.DefaultConfig(),
		HTTP:          opshttp.DefaultConfig(),
		Kafka:         kafka.DefaultConfig(),
		ClickHouse:    clickhouse.DefaultConfig(),
		Retention:     clickhouse.Retention{Spans: 30 * 24 * time.Hour},
		Migrate:       true,
		Gateway:       gateway.DefaultConfig(),
		Writer:        writer.DefaultConfig(),
		Control:       control.DefaultConfig(),
		Log:           logging{Level: "info", Format: "json"},
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
	if s.Retention.Spans < 0 {
		errs = append(errs, fmt.Errorf("retention.spans: %s is negative", s.Retention.Spans))
	}
	if s.ShutdownGrace <= 0 {
		errs = append(errs, fmt.Errorf("shutdown_grace: %s is not positive", s.ShutdownGrace))
	}
	if _, err := s.Log.level(); err != nil {
		errs = append(errs, err)
	}
	if s.Log.Format != "json" && s.Log.Format != "text" {
		errs = append(errs, fmt.Errorf("log.format: %q is neither json nor text", s.Log.Format))
	}
	return errors.Join(append(errs,
		config.Section("grpc", s.GRPC.Validate()),
		config.Section("http", s.HTTP.Validate()),
		config.Section("kafka", s.Kafka.Validate()),
		config.Section("clickhouse", s.ClickHouse.Validate()),
		config.Section("gateway", s.Gateway.Validate()),
		config.Section("writer", s.Writer.Validate()),
		config.Section("control", s.Control.Validate()),
	)...)
}

func (s *server) has(role string) bool { return slices.Contains(s.Roles, role) }

func newConfig() *cobra.Command {
	check := &cobra.Command{
		Use: "check", Short: "Say everything that is wrong with the configuration; status 2 if anything is", Args: noArgs,
	}
	checked := addConfigFlags(check, nil)
	check.RunE = func(cmd *cobra.Command, _ []string) error {
		if _, err := checked.load(cmd); err != nil {
			return err
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "the configuration is valid")
		return err
	}
	show := &cobra.Command{
		Use: "print", Short: "Print every key with its value, default and meaning, as a file that can be used", Args: noArgs,
	}
	shown := addConfigFlags(show, nil)
	show.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := shown.load(cmd)
		if err != nil {
			return err
		}
		return config.Print(cmd.OutOrStdout(), cfg, defaultServer(), envPrefix)
	}
	return group("config", "Check or print the configuration", check, show)
}
