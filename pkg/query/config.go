package query

import (
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
	"github.com/metaflowys/metaflow-server/pkg/tokens"
	"github.com/metaflowys/metaflow-server/pkg/values"
)

// Config is what an operator may set. Start from DefaultConfig.
type Config struct {
	// HTTPListen: host:port of the page /ui, Tempo's API and /mcp; port 0
	// picks a free one.
	HTTPListen string `mapstructure:"http_listen" doc:"host:port of the page /ui, Tempo's API and /mcp; port 0 picks a free one"`
	// GRPCListen: host:port of Jaeger's remote storage API; port 0 picks a
	// free one.
	GRPCListen string           `mapstructure:"grpc_listen" doc:"host:port of Jaeger's remote storage API; port 0 picks a free one"`
	TLS        tlsconfig.Server `mapstructure:"tls"`
	// Insecure: serve plain text on addresses that other hosts reach;
	// without this or tls, the server does not start on one.
	Insecure bool `mapstructure:"insecure" doc:"serve plain text on addresses that other hosts reach; without this or tls, the server does not start on one"`
	// Tokens: tokens of which every request needs one, as Authorization:
	// Bearer TOKEN; empty asks for none.
	Tokens []string `mapstructure:"tokens" doc:"tokens of which every request needs one, as Authorization: Bearer TOKEN; empty asks for none" secret:"true"`
	// TokensFile: file with one token a line, read again when it changes.
	TokensFile string `mapstructure:"tokens_file" doc:"file with one token a line, read again when it changes"`
	// Username: ClickHouse user of these queries, which 'migrate up'
	// creates with rights to read only; empty means clickhouse.username.
	Username string `mapstructure:"username" doc:"ClickHouse user of these queries, which 'migrate up' creates with rights to read only; empty means clickhouse.username"`
	// Password: password of username.
	Password string `mapstructure:"password" doc:"password of username" secret:"true"`
	// MaxExecutionTime: how long a query may run in ClickHouse.
	MaxExecutionTime time.Duration `mapstructure:"max_execution_time" doc:"how long a query may run in ClickHouse"`
	// MaxMemoryBytes: memory of one query in ClickHouse.
	MaxMemoryBytes int64 `mapstructure:"max_memory_bytes" unit:"bytes" doc:"memory of one query in ClickHouse"`
	// MaxResultRows: maximum rows of a result; more are an error.
	MaxResultRows int64 `mapstructure:"max_result_rows" doc:"maximum rows of a result; more are an error"`
	// MaxResultBytes: maximum bytes of a result, uncompressed; a trace is
	// cut there, and any other result with more is an error.
	MaxResultBytes int64 `mapstructure:"max_result_bytes" unit:"bytes" doc:"maximum bytes of a result, uncompressed; a trace is cut there, and any other result with more is an error"`
	// MaxQueries: queries that run at a time; others wait. Too many slow
	// ClickHouse down for its writers.
	MaxQueries int `mapstructure:"max_queries" doc:"queries that run at a time; others wait. Too many slow ClickHouse down for its writers"`
	// MaxSpans: maximum spans of a trace that is read; a longer one is cut
	// and says so.
	MaxSpans int `mapstructure:"max_spans" doc:"maximum spans of a trace that is read; a longer one is cut and says so"`
	// MaxTraces: maximum traces of a search.
	MaxTraces int `mapstructure:"max_traces" doc:"maximum traces of a search"`
	// MaxRange: longest time range of a search.
	MaxRange time.Duration `mapstructure:"max_range" doc:"longest time range of a search"`
	// NetworkTimeout: how long a trace, or a search for whole traces, waits
	// for what the network did to spans; afterwards it is returned without;
	// 0 never asks.
	NetworkTimeout time.Duration `mapstructure:"network_timeout" doc:"how long a trace, or a search for whole traces, waits for what the network did to spans; afterwards it is returned without; 0 never asks"`
	// MaxVerdicts: maximum traces whose network is examined by a search for
	// network.verdict, the slowest or failed ones first, up to twenty by
	// one query.
	MaxVerdicts int `mapstructure:"max_verdicts" doc:"maximum traces whose network is examined by a search for network.verdict, the slowest or failed ones first, up to twenty by one query"`
	// GrafanaURL: address of Grafana, to which the page links; empty for no
	// link.
	GrafanaURL string `mapstructure:"grafana_url" doc:"address of Grafana, to which the page links; empty for no link"`
	// JaegerURL: address of Jaeger's UI, to which the page links; empty for
	// no link.
	JaegerURL string `mapstructure:"jaeger_url" doc:"address of Jaeger's UI, to which the page links; empty for no link"`
}

// DefaultConfig returns a configuration that only this host reaches.
func DefaultConfig() Config {
	return Config{
		HTTPListen:       "127.0.0.1:20419",
		GRPCListen:       "127.0.0.1:20036",
		MaxExecutionTime: 30 * time.Second,
		MaxMemoryBytes:   2 << 30,
		MaxResultRows:    200_000,
		MaxResultBytes:   64 << 20,
		MaxQueries:       8,
		MaxSpans:         20_000,
		MaxTraces:        500,
		MaxRange:         7 * 24 * time.Hour,
		NetworkTimeout:   5 * time.Second,
		MaxVerdicts:      200,
	}
}

// TokensKey names the tokens in refusals.
const TokensKey = "query.tokens"

// Bearers returns the tokens.
func (c Config) Bearers() tokens.List {
	return tokens.List{Key: TokensKey, Values: c.Tokens, File: c.TokensFile}
}

// Open reports whether anybody who reaches the ports may ask.
func (c Config) Open() bool {
	return len(c.Tokens) == 0 && c.TokensFile == "" && c.TLS.ClientCAFile == ""
}

// Validate reports every problem at once, each by its key.
func (c Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	for _, l := range []struct{ key, address string }{{"http_listen", c.HTTPListen}, {"grpc_listen", c.GRPCListen}} {
		if err := values.CheckListen(l.address); err != nil {
			errs = append(errs, fmt.Errorf("%s: %q %w", l.key, l.address, err))
		}
	}
	if err := (tokens.List{Key: "tokens", Values: c.Tokens, File: c.TokensFile}).Validate(); err != nil {
		errs = append(errs, err)
	}
	check(c.MaxExecutionTime >= time.Second, "max_execution_time: %s is less than 1s", c.MaxExecutionTime)
	check(c.MaxMemoryBytes >= 64<<20, "max_memory_bytes: %d is less than 64MiB", c.MaxMemoryBytes)
	check(c.MaxResultRows >= 1000, "max_result_rows: %d is less than 1000", c.MaxResultRows)
	check(c.MaxResultBytes >= 1<<20, "max_result_bytes: %d is less than 1MiB", c.MaxResultBytes)
	check(c.MaxQueries > 0 && c.MaxQueries <= 1000, "max_queries: %d is not between 1 and 1000", c.MaxQueries)
	check(c.MaxSpans > 0 && int64(c.MaxSpans) < c.MaxResultRows, "max_spans: %d is not at least 1 and less than max_result_rows, %d", c.MaxSpans, c.MaxResultRows)
	check(c.MaxTraces > 0 && c.MaxTraces <= 10_000, "max_traces: %d is not between 1 and 10000", c.MaxTraces)
	check(c.MaxRange >= time.Hour, "max_range: %s is less than 1h", c.MaxRange)
	check(c.NetworkTimeout >= 0, "network_timeout: %s is negative", c.NetworkTimeout)
	check(c.MaxVerdicts > 0 && c.MaxVerdicts <= 1000, "max_verdicts: %d is not between 1 and 1000", c.MaxVerdicts)
	for _, l := range []struct{ key, address string }{{"grafana_url", c.GrafanaURL}, {"jaeger_url", c.JaegerURL}} {
		u, err := url.Parse(l.address)
		check(l.address == "" || err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "", "%s: %q is not an http or https URL", l.key, l.address)
	}
	return errors.Join(append(errs, c.TLS.Validate("tls"))...)
}
