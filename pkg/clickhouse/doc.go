// Package clickhouse is MetaFlow's only door to ClickHouse: it inserts blocks,
// looks up spans by their ids, migrates the schema and keeps the retention.
//
// [DB] asks questions and changes tables, over a pool that any replica may
// serve. [Inserter] sends blocks of columns to the replicas of one shard. What
// the rows mean is not known here; the SQL of the tables is in migrations.
//
// Storing exactly once rests on four things that [Inserter.Insert] keeps:
//   - a block goes out whole, as one block, in one statement, under the
//     caller's deduplication token;
//   - the settings and the names of the columns that go with it never vary;
//   - the caller's columns are read only, so the same block can be sent again;
//   - an error whose outcome is unknown is Retryable, never Rejected.
//
// The addresses of a configuration without a cluster are taken for replicas of
// one shard: deduplication across them is ClickHouse's, and holds for
// Replicated tables only. With a cluster, system.clusters says which address
// belongs to which shard; the number of shards is read once and never changes
// under a running program, because a block that is sent again must reach the
// shard that may already have it.
//
// DB and Inserter are safe for concurrent use. Their constructors dial nothing
// and start nothing; a call that blocks ends with its context.
package clickhouse
