package clickhouse

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/metaflowys/metaflow-server/migrations"
	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
	"github.com/metaflowys/metaflow-server/pkg/values"
)

// Config is what an operator may set. Start from DefaultConfig.
type Config struct {
	// Addresses: host:port pairs of the native protocol; without a cluster
	// they must be replicas of each other.
	Addresses []string `mapstructure:"addresses" doc:"host:port pairs of the native protocol; without a cluster they must be replicas of each other"`
	// Database: database of all tables; created if missing.
	Database string `mapstructure:"database" doc:"database of all tables; created if missing"`
	// Cluster: cluster name in remote_servers; if set, Replicated and
	// Distributed tables are used on all of its nodes.
	Cluster string `mapstructure:"cluster" doc:"cluster name in remote_servers; if set, Replicated and Distributed tables are used on all of its nodes"`
	// Username: user with permission to create tables, insert and select.
	Username string `mapstructure:"username" doc:"user with permission to create tables, insert and select"`
	// Password: password of the user.
	Password string `mapstructure:"password" doc:"password of the user" secret:"true"`
	// Compression: compression of inserted blocks on the wire: lz4, zstd or
	// none; none saves CPU if ClickHouse is on this machine.
	Compression string `mapstructure:"compression" doc:"compression of inserted blocks on the wire: lz4, zstd or none; none saves CPU if ClickHouse is on this machine"`
	// DialTimeout: timeout for connecting, including TLS and login; too
	// short fails when ClickHouse is busy, too long delays the switch to
	// another replica.
	DialTimeout time.Duration `mapstructure:"dial_timeout" doc:"timeout for connecting, including TLS and login; too short fails when ClickHouse is busy, too long delays the switch to another replica"`
	// QueryTimeout: timeout for one insert or query; an insert that takes
	// longer is retried under the same token.
	QueryTimeout time.Duration `mapstructure:"query_timeout" doc:"timeout for one insert or query; an insert that takes longer is retried under the same token"`
	// InsertQuorum: replicas that must have a block before it counts as
	// stored: a number, or auto for a majority; empty uses the user's
	// settings in ClickHouse.
	InsertQuorum string `mapstructure:"insert_quorum" doc:"replicas that must have a block before it counts as stored: a number, or auto for a majority; empty uses the user's settings in ClickHouse"`
	// SyncInserts: sync each insert to disk before it counts as stored, so
	// that a power loss loses no span whose offset was committed; false
	// relies on the operating system or on replicas elsewhere.
	SyncInserts bool `mapstructure:"sync_inserts" doc:"sync each insert to disk before it counts as stored, so that a power loss loses no span whose offset was committed; false relies on the operating system or on replicas elsewhere"`
	// TLS: TLS; the secure native port is usually 9440.
	TLS tlsconfig.Client `mapstructure:"tls" doc:"TLS; the secure native port is usually 9440"`
}

// DefaultConfig returns the configuration of a single ClickHouse on this machine.
func DefaultConfig() Config {
	return Config{
		Addresses:    []string{"127.0.0.1:9000"},
		Database:     "metaflow",
		Username:     "default",
		Compression:  compressionLZ4,
		DialTimeout:  5 * time.Second,
		QueryTimeout: time.Minute,
		SyncInserts:  true,
	}
}

const (
	compressionLZ4  = "lz4"
	compressionZSTD = "zstd"
	compressionNone = "none"
)

// Validate reports every problem at once, each by its key. It does no I/O.
func (c Config) Validate() error {
	var errs []error
	problem := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.Addresses) == 0 {
		problem("addresses: at least one is required")
	}
	for i, addr := range c.Addresses {
		if err := values.CheckDial(addr); err != nil {
			problem("addresses[%d]: %q %w", i, addr, err)
		}
	}
	if !migrations.SafeDatabase(c.Database) {
		problem("database: %q is not letters, digits and _", c.Database)
	}
	if c.Cluster != "" && !migrations.SafeCluster(c.Cluster) {
		problem("cluster: %q is not letters, digits, _, . and -", c.Cluster)
	}
	if c.Username == "" {
		problem("username: must not be empty")
	}
	if !slices.Contains([]string{compressionLZ4, compressionZSTD, compressionNone}, c.Compression) {
		problem("compression: %q is not lz4, zstd or none", c.Compression)
	}
	if c.DialTimeout <= 0 {
		problem("dial_timeout: %s is not positive", c.DialTimeout)
	}
	if c.QueryTimeout <= 0 {
		problem("query_timeout: %s is not positive", c.QueryTimeout)
	}
	if n, err := values.Whole(c.InsertQuorum); c.InsertQuorum != "" && c.InsertQuorum != "auto" && (err != nil || n < 0) {
		problem("insert_quorum: %q is not a number, auto or empty", c.InsertQuorum)
	}
	return errors.Join(append(errs, c.TLS.Validate("tls"))...)
}
