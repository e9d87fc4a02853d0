// Package clickhouse is the server's only access to ClickHouse: it inserts blocks, looks
// up rows by key, migrates the schema and maintains the retention.
//
// [DB] runs queries and changes tables through a pool that any replica may serve.
// [Inserter] sends blocks of columns to the replicas of one shard. The package does not
// interpret rows; package migrations has the SQL of the tables.
//
// Exactly-once storage relies on four properties of [Inserter.Insert]:
//   - a block is sent whole, as one block in one statement, under the caller's
//     deduplication token;
//   - its settings and column names never vary;
//   - it only reads the caller's columns, so the same block can be sent again;
//   - an error with an unknown outcome is Retryable, never Rejected.
//
// Without a cluster, the configured addresses must be replicas of one shard: ClickHouse
// deduplicates across them, for Replicated tables only. With a cluster, system.clusters
// assigns addresses to shards. The number of shards is read once and never changes while
// the program runs, because a retried block must reach the shard that may already have
// it.
//
// DB and Inserter are safe for concurrent use. Their constructors neither connect nor
// start goroutines. A blocking call returns when its context ends.
package clickhouse
