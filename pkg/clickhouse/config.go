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
	// they must be replicas of one another.
	Addresses []string `mapstructure:"addresses" doc:"host:port pairs of the native protocol; without a cluster they must be replicas of one another"`
	// Database: database that holds everything; created when missing.
	Database string `mapstructure:"database" doc:"database that holds everything; created when missing"`
	// Cluster: name in remote_servers; set it to use Replicated and
	// Distributed tables on all of its nodes.
	Cluster string `mapstructure:"cluster" doc:"name in remote_servers; set it to use Replicated and Distributed tables on all of its nodes"`
	// Username: user that may create tables, insert and select.
	Username string `mapstructure:"username" doc:"user that may create tables, insert and select"`
	// Password: password of the user.
	Password string `mapstructure:"password" doc:"password of the user" secret:"true"`
	// Compression: of inserted blocks on the wire: lz4, zstd or none; none
	// saves CPU when ClickHouse is on this machine.
	Compression string `mapstructure:"compression" doc:"of inserted blocks on the wire: lz4, zstd or none; none saves CPU when ClickHouse is on this machine"`
	// DialTimeout: time for one connection, with TLS and login; too short
	// fails when ClickHouse is busy, too long delays the turn to another
	// replica.
	DialTimeout time.Duration `mapstructure:"dial_timeout" doc:"time for one connection, with TLS and login; too short fails when ClickHouse is busy, too long delays the turn to another replica"`
	// QueryTimeout: time for one insert or query; an insert that takes
	// longer is sent again under the same token.
	QueryTimeout time.Duration `mapstructure:"query_timeout" doc:"time for one insert or query; an insert that takes longer is sent again under the same token"`
	// InsertQuorum: replicas that must have a block before it counts as
	// stored: a number, or auto for a majority; empty leaves it to the
	// user's settings in ClickHouse.
	InsertQuorum string `mapstructure:"insert_quorum" doc:"replicas that must have a block before it counts as stored: a number, or auto for a majority; empty leaves it to the user's settings in ClickHouse"`
	// SyncInserts: tables sync each insert to disk before it counts as
	// stored, so that a power cut loses no span that Kafka is told is
	// stored; false leaves that to the operating system, or to replicas in
	// other places.
	SyncInserts bool `mapstructure:"sync_inserts" doc:"tables sync each insert to disk before it counts as stored, so that a power cut loses no span that Kafka is told is stored; false leaves that to the operating system, or to replicas in other places"`
	// TLS: encryption; the secure native port is usually 9440.
	TLS tlsconfig.Client `mapstructure:"tls" doc:"encryption; the secure native port is usually 9440"`
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
