package kafka

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
	"github.com/metaflowys/metaflow-server/pkg/values"
)

// Config is what an operator may set. Start from DefaultConfig.
type Config struct {
	// Brokers: host:port of some brokers; the others are discovered through
	// them.
	Brokers []string `mapstructure:"brokers" doc:"host:port of some brokers; the others are discovered through them"`
	// Partitions: partitions of the spans topic when it is created; it
	// bounds how many writers can work in parallel. Changing it later moves
	// traces to other partitions, so choose generously.
	Partitions int `mapstructure:"partitions" doc:"partitions of the spans topic when it is created; it bounds how many writers can work in parallel. Changing it later moves traces to other partitions, so choose generously"`
	// Replication: replicas of newly created topics; 3 in production.
	Replication int `mapstructure:"replication" doc:"replicas of newly created topics; 3 in production"`
	// MinInSync: min.insync.replicas of newly created topics: how many
	// replicas must have a record before it is acknowledged. 0 means 2 with
	// three or more replicas, otherwise 1.
	MinInSync int `mapstructure:"min_insync_replicas" doc:"min.insync.replicas of newly created topics: how many replicas must have a record before it is acknowledged. 0 means 2 with three or more replicas, otherwise 1"`
	// Retention: retention of newly created topics: the longest ClickHouse
	// outage without loss.
	Retention time.Duration `mapstructure:"retention" doc:"retention of newly created topics: the longest ClickHouse outage without loss"`
	// Compression: compression of record batches: none, gzip, snappy, lz4
	// or zstd; snappy takes about half the CPU of lz4, zstd about half its
	// space for up to twice its CPU.
	Compression string `mapstructure:"compression" doc:"compression of record batches: none, gzip, snappy, lz4 or zstd; snappy takes about half the CPU of lz4, zstd about half its space for up to twice its CPU"`
	// MaxRecordBytes: maximum size of one record before compression; larger
	// requests are split. Must be below the brokers' message.max.bytes.
	MaxRecordBytes int64 `mapstructure:"max_record_bytes" unit:"bytes" doc:"maximum size of one record before compression; larger requests are split. Must be below the brokers' message.max.bytes"`
	// ProduceTimeout: how long to wait for the acknowledgement of all
	// in-sync replicas before the client is told to retry.
	ProduceTimeout time.Duration `mapstructure:"produce_timeout" doc:"how long to wait for the acknowledgement of all in-sync replicas before the client is told to retry"`
	SASL           SASL          `mapstructure:"sasl"`
	// TLS: TLS; the brokers' TLS listeners are usually on port 9093.
	TLS tlsconfig.Client `mapstructure:"tls" doc:"TLS; the brokers' TLS listeners are usually on port 9093"`
}

// SASL configures the login. The zero value does not log in.
type SASL struct {
	// Mechanism: plain, scram-sha-256 or scram-sha-512; empty does not log
	// in.
	Mechanism string `mapstructure:"mechanism" doc:"plain, scram-sha-256 or scram-sha-512; empty does not log in"`
	// Username: user to log in as.
	Username string `mapstructure:"username" doc:"user to log in as"`
	// Password: password of the user.
	Password string `mapstructure:"password" doc:"password of the user" secret:"true"`
}

// DefaultConfig returns the configuration for one broker on this machine.
func DefaultConfig() Config {
	return Config{
		Brokers:        []string{"127.0.0.1:9092"},
		Partitions:     12,
		Replication:    1,
		Retention:      24 * time.Hour,
		Compression:    "snappy",
		MaxRecordBytes: 900 << 10,
		ProduceTimeout: 10 * time.Second,
	}
}

const (
	mechanismPlain    = "plain"
	mechanismScram256 = "scram-sha-256"
	mechanismScram512 = "scram-sha-512"
)

// maxReplication is far more than anybody uses; no cluster has as many brokers as a slip of
// the pen asks for.
const maxReplication = 15

// Validate reports every problem at once, each by its key. It does no I/O.
func (c Config) Validate() error {
	var errs []error
	problem := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.Brokers) == 0 {
		problem("brokers: at least one is required")
	}
	for i, addr := range c.Brokers {
		if err := values.CheckDial(addr); err != nil {
			problem("brokers[%d]: %q %w", i, addr, err)
		}
	}
	if c.Partitions < 1 {
		problem("partitions: %d is not positive", c.Partitions)
	}
	if c.Replication < 1 {
		problem("replication: %d is not positive", c.Replication)
	}
	if c.Replication > maxReplication {
		problem("replication: %d is more than %d; 3 is usual, and it cannot exceed the number of brokers", c.Replication, maxReplication)
	}
	if c.MinInSync < 0 || c.MinInSync > max(c.Replication, 1) {
		problem("min_insync_replicas: %d is not between 0 and %d (replication)", c.MinInSync, max(c.Replication, 1))
	}
	if c.Retention < time.Minute {
		problem("retention: %s is less than a minute", c.Retention)
	}
	if _, err := codecByName(c.Compression); err != nil {
		problem("compression: %w", err)
	}
	if c.MaxRecordBytes < 1<<10 || c.MaxRecordBytes > maxRequestBytes {
		problem("max_record_bytes: %d is not between %d and %d", c.MaxRecordBytes, 1<<10, maxRequestBytes)
	}
	if c.ProduceTimeout < 100*time.Millisecond {
		problem("produce_timeout: %s is less than 100ms", c.ProduceTimeout)
	}
	errs = append(errs, c.SASL.problems()...)
	return errors.Join(append(errs, c.TLS.Validate("tls"))...)
}

func (s SASL) problems() []error {
	var errs []error
	switch {
	case s.Mechanism == "" && s.Username != "":
		errs = append(errs, fmt.Errorf("sasl.mechanism: it is empty, but sasl.username is %q", s.Username))
	case s.Mechanism == "":
		return nil
	case !slices.Contains([]string{mechanismPlain, mechanismScram256, mechanismScram512}, s.Mechanism):
		errs = append(errs, fmt.Errorf("sasl.mechanism: %q is not plain, scram-sha-256 or scram-sha-512", s.Mechanism))
	}
	if s.Mechanism != "" && s.Username == "" {
		errs = append(errs, fmt.Errorf("sasl.username: it is empty, but sasl.mechanism is %q", s.Mechanism))
	}
	if s.Mechanism != "" && s.Password == "" {
		errs = append(errs, fmt.Errorf("sasl.password: it is empty, but sasl.mechanism is %q; set it by METAFLOW_KAFKA_SASL_PASSWORD", s.Mechanism))
	}
	return errs
}
