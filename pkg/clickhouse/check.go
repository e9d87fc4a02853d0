package clickhouse

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ClickHouse/ch-go/proto"
)

// Finding is the result of one check, of one node or of all.
type Finding struct {
	Check string
	Where string // the node, or what the check is about
	// Problem is empty if the check found none.
	Problem string
	// Fix says what to do about the problem.
	Fix string
}

// Check looks at everything outside of MetaFlow that the tables rely on: on every node, that
// it answers, the definition of the cluster, Keeper, macros and the user's grants; and the
// quorum of inserts beside the replicas that Kafka keeps of a record. It changes nothing.
func (d *DB) Check(ctx context.Context, kafkaReplication int) []Finding {
	c := &checker{DB: d, replication: kafkaReplication}
	nodes := c.answering(ctx)
	if d.cfg.Cluster != "" && len(nodes) > 0 {
		c.keeper(ctx, nodes)
		c.macros(ctx, nodes)
	}
	c.grants(ctx, nodes)
	c.quorum(ctx, nodes)
	return c.findings
}

type checker struct {
	*DB
	replication int
	findings    []Finding
}

func (c *checker) found(check, where, problem, fix string) {
	c.findings = append(c.findings, Finding{check, where, problem, fix})
}

// place is a node and its shard in the cluster.
type place struct {
	*node
	shard int
}

// answering returns the nodes that answer: those configured, and those of the cluster, which
// writers reach by the addresses in remote_servers.
func (c *checker) answering(ctx context.Context) []place {
	var places []place
	if c.cfg.Cluster != "" {
		if err := c.shards.refresh(ctx, 0); err != nil {
			c.found("cluster", c.cfg.Cluster, readable(err).Error(), "define the cluster "+c.cfg.Cluster+" in remote_servers of every node, or correct clickhouse.cluster; leave it empty for a single server")
		}
	}
	for i := range c.shards.count() {
		replicas, err := c.shards.replicas(i)
		if err != nil {
			continue // the cluster has lost a shard meanwhile
		}
		for _, n := range replicas {
			places = append(places, place{n, i})
		}
	}
	for _, n := range c.shards.seeds {
		if !slices.ContainsFunc(places, func(p place) bool { return p.node == n }) {
			places = append(places, place{n, -1})
		}
	}
	definitions := map[string]string{}
	answering := places[:0]
	for _, p := range places {
		version, err := c.textAt(ctx, p.node, "SELECT version()")
		if err != nil {
			problem := readable(explain(ctx, []string{p.addr}, err)).Error()
			c.found("ClickHouse", p.addr, strings.TrimPrefix(problem, p.addr+" "), c.reach(p, err))
			continue
		}
		c.found("ClickHouse", p.addr+", version "+version[0][0], "", "")
		if c.cfg.Cluster != "" {
			rows, err := c.textAt(ctx, p.node, "SELECT arrayStringConcat(arraySort(groupArray(concat(toString(shard_num), '/', host_name, ':', toString(port)))), ' ') FROM system.clusters WHERE cluster = "+quote(c.cfg.Cluster))
			if err == nil {
				definitions[p.addr] = rows[0][0]
			}
		}
		if p.shard >= 0 {
			answering = append(answering, p)
		}
	}
	for addr, definition := range definitions {
		if definition != definitions[first(definitions)] {
			c.found("cluster", addr, fmt.Sprintf("defines it as %q, and %s as %q", definition, first(definitions), definitions[first(definitions)]), "make remote_servers the same on every node")
		}
	}
	return answering
}

// reach says what to do about a node that cannot be asked because of err.
func (c *checker) reach(p place, err error) string {
	switch {
	case IsLoginRefused(err):
		return "correct clickhouse.username and clickhouse.password, or create the user there"
	case c.cfg.Cluster != "" && p.shard >= 0:
		return "start it, or correct its address in remote_servers: writers connect to each node of the cluster"
	default:
		return "start it, or correct clickhouse.addresses"
	}
}

// first returns the least key.
func first(m map[string]string) (least string) {
	for key := range m {
		if least == "" || key < least {
			least = key
		}
	}
	return least
}

func (c *checker) keeper(ctx context.Context, nodes []place) {
	const fix = "set <zookeeper> in the node's configuration to ClickHouse Keeper or ZooKeeper, and start it"
	for _, n := range nodes {
		_, err := c.textAt(ctx, n.node, "SELECT name FROM system.zookeeper WHERE path = '/'")
		if code, _, _ := exception(err); code == proto.ErrUnknownTable {
			// There is no such table without Keeper, or where an administrator has removed it.
			var sessions [][]string
			sessions, err = c.textAt(ctx, n.node, "SELECT table FROM system.replicas WHERE NOT is_session_expired LIMIT 1")
			if err == nil && len(sessions) == 0 {
				c.found("Keeper", n.addr, "it is not configured", fix)
				continue
			}
		}
		if code, _, _ := exception(err); code == proto.ErrAccessDenied {
			c.found("Keeper", n.addr, readable(err).Error(), "grant SELECT on system.zookeeper")
			continue
		}
		if err != nil {
			c.found("Keeper", n.addr, readable(err).Error(), fix)
			continue
		}
		c.found("Keeper", n.addr, "", "")
	}
}

// macros checks that the nodes of a shard, and only they, have one macro shard, and that each
// of them has a macro replica of its own.
func (c *checker) macros(ctx context.Context, nodes []place) {
	type pair struct{ shard, replica string }
	of := map[pair]string{}    // address
	shards := map[string]int{} // number in the cluster, by macro
	for _, n := range nodes {
		rows, err := c.textAt(ctx, n.node, "SELECT macro, substitution FROM system.macros")
		if err != nil {
			c.found("macros", n.addr, readable(err).Error(), "grant SELECT on system.macros")
			continue
		}
		macros := map[string]string{}
		for _, row := range rows {
			macros[row[0]] = row[1]
		}
		own := pair{macros["shard"], macros["replica"]}
		number, known := shards[own.shard]
		switch {
		case own.shard == "" || own.replica == "":
			c.found("macros", n.addr, fmt.Sprintf("shard is %q and replica is %q", own.shard, own.replica), "set <macros><shard>…</shard><replica>…</replica></macros> in the node's configuration")
		case known && number != n.shard:
			c.found("macros", n.addr, fmt.Sprintf("shard is %q, as in another shard of remote_servers", own.shard), "give the nodes of each shard a macro shard of their own")
		case !known && slices.Contains(shardsOf(shards), n.shard):
			c.found("macros", n.addr, fmt.Sprintf("shard is %q, and other replicas of its shard have another one", own.shard), "give all nodes of a shard in remote_servers the same macro shard")
		case of[own] != "":
			c.found("macros", n.addr, fmt.Sprintf("shard %q and replica %q, as %s has", own.shard, own.replica, of[own]), "give each replica of a shard a macro replica of its own")
		default:
			c.found("macros", n.addr, "", "")
		}
		shards[own.shard] = n.shard
		of[own] = n.addr
	}
}

func shardsOf(m map[string]int) (list []int) {
	for _, v := range m {
		list = append(list, v)
	}
	return list
}

// privileges returns what the user needs to migrate and to write.
func (c *checker) privileges() []string {
	db := c.cfg.Database + ".*"
	list := []string{}
	for _, p := range []string{"SELECT", "INSERT", "CREATE DATABASE", "CREATE TABLE", "CREATE VIEW", "DROP TABLE", "DROP VIEW", "ALTER TABLE", "ALTER VIEW"} {
		list = append(list, p+" ON "+db)
	}
	for _, table := range []string{"clusters", "disks", "merge_tree_settings", "parts", "processes", "replicas", "settings", "tables"} {
		list = append(list, "SELECT ON system."+table)
	}
	engines := []string{"AggregatingMergeTree", "MergeTree", "ReplacingMergeTree"}
	if c.cfg.Cluster != "" {
		engines = []string{"Distributed", "ReplicatedAggregatingMergeTree", "ReplicatedMergeTree", "ReplicatedReplacingMergeTree"}
	}
	for _, engine := range engines {
		list = append(list, "TABLE ENGINE ON "+engine)
	}
	if c.cfg.Cluster != "" {
		list = append(list, "CLUSTER ON *.*", "REMOTE ON *.*", "SYSTEM SYNC REPLICA ON "+db, "SYSTEM DROP REPLICA ON "+db)
		for _, table := range []string{"detached_tables", "macros", "server_settings", "zookeeper"} {
			list = append(list, "SELECT ON system."+table)
		}
	}
	return list
}

func (c *checker) grants(ctx context.Context, nodes []place) {
	for _, n := range nodes {
		var missing []string
		unknown := error(nil)
		for _, privilege := range c.privileges() {
			var granted proto.ColUInt8
			err := c.selectAt(ctx, n.node, "CHECK GRANT "+privilege, proto.Results{{Name: "result", Data: &granted}})
			switch {
			case err != nil:
				unknown = err
			case granted.Rows() == 1 && granted.Row(0) == 0:
				missing = append(missing, privilege)
			}
		}
		code, _, _ := exception(unknown)
		switch {
		case len(missing) > 0:
			c.found("grants", n.addr, c.cfg.Username+" lacks "+strings.Join(missing, ", "), "GRANT "+strings.Join(missing, ", ")+" TO "+c.cfg.Username)
		case code == proto.ErrSyntaxError:
			c.found("grants", n.addr+", not checked: this release of ClickHouse has no CHECK GRANT", "", "")
		case unknown != nil:
			c.found("grants", n.addr, readable(unknown).Error(), "see docs/security.md for the grants")
		default:
			c.found("grants", n.addr, "", "")
		}
	}
}

// quorum compares how many disks hold a span after its offset is committed with what Kafka
// kept before.
func (c *checker) quorum(ctx context.Context, nodes []place) {
	replicas := map[int]int{}
	for i := range c.shards.count() {
		if list, err := c.shards.replicas(i); err == nil {
			replicas[i] = len(list)
		}
	}
	seen := map[int]bool{}
	for _, n := range nodes {
		if seen[n.shard] {
			continue
		}
		seen[n.shard] = true
		setting := c.cfg.InsertQuorum
		if setting == "" { // the user's profile counts
			rows, err := c.textAt(ctx, n.node, "SELECT value FROM system.settings WHERE name = 'insert_quorum'")
			if err == nil && len(rows) == 1 {
				setting = rows[0][0]
			}
		}
		where, count := fmt.Sprintf("shard %d, %d replicas", n.shard+1, replicas[n.shard]), replicas[n.shard]
		quorum, err := strconv.Atoi(setting)
		if err != nil { // auto
			quorum = count/2 + 1
		}
		switch {
		case c.cfg.Cluster == "":
			return // one server, or replicas that MetaFlow knows nothing of
		case quorum > count:
			c.found("insert_quorum", where, fmt.Sprintf("is %s, so no insert can succeed", setting), "set clickhouse.insert_quorum to auto")
		case quorum < 2 && count > 1 && c.replication > 1:
			c.found("insert_quorum", where, fmt.Sprintf("is %s: a lost disk of ClickHouse loses spans that other replicas have not fetched, although Kafka keeps %d copies", cmp.Or(setting, "0"), c.replication),
				"set clickhouse.insert_quorum to auto; with two replicas inserts then wait while one is down")
		case count < 2 && c.replication > 1:
			c.found("insert_quorum", where, fmt.Sprintf("a lost disk of ClickHouse loses all spans of the shard, although Kafka keeps %d copies", c.replication), "add a replica to the shard")
		default:
			c.found("insert_quorum", where+", "+cmp.Or(setting, "0"), "", "")
		}
	}
}
