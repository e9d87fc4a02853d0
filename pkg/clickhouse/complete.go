package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/metaflowys/metaflow-server/migrations"
	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// Completion is what CompleteNodes found and did.
type Completion struct {
	// Nodes are the addresses of the cluster's nodes; none without a cluster.
	Nodes []string
	// Unreachable has the nodes that did not answer, and why.
	Unreachable map[string]error
	// Created has the tables created, by node.
	Created map[string][]string
	// Dropped has the tables whose lost replica was removed from Keeper, by node.
	Dropped map[string][]string
}

// CompleteNodes creates on each node of the cluster the tables that it lacks and another
// node has, in their current form: a node that joined, or one that came back without its
// data, then fetches the rows of its shard from its other replicas.
//
// Keeper still has the replicas of a node that lost its data. CompleteNodes removes those of
// which it knows that their data is gone; see checkLost. In any other case it changes
// nothing of them, and the error has the statement for an operator who knows more.
//
// It does what it can on every node and returns the errors joined. Without a cluster, or in
// one without tables, it does nothing.
func (d *DB) CompleteNodes(ctx context.Context) (*Completion, error) {
	return d.completeNodes(ctx, true)
}

// errLostReplica means that Keeper has a replica whose table is gone from its node.
var errLostReplica = errors.New("a replica of this table is in Keeper, but not on the node; if the node lost its data, run 'metaflow-server migrate up'")

// member is a node of the cluster and the tables of ours that it has.
type member struct {
	*node
	created map[string]string // CREATE statement by name
}

func (d *DB) completeNodes(ctx context.Context, dropLost bool) (*Completion, error) {
	done := &Completion{Unreachable: map[string]error{}, Created: map[string][]string{}, Dropped: map[string][]string{}}
	p := d.params(Retention{})
	if p.OnCluster() == "" {
		return done, nil
	}
	names, err := migrations.Tables(p)
	if err != nil {
		return done, err
	}
	members, err := d.members(ctx, done)
	if err != nil {
		return done, err
	}
	var errs []error
	for _, name := range names {
		i := slices.IndexFunc(members, func(m member) bool { return m.created[name] != "" })
		if i < 0 {
			continue // a step that is still to come creates it
		}
		create := strings.Replace(members[i].created[name], "CREATE TABLE ", "CREATE TABLE IF NOT EXISTS ", 1)
		for _, m := range members {
			if m.created[name] != "" {
				continue
			}
			if err := d.createAt(ctx, m, members, name, create, dropLost, done); err != nil {
				errs = append(errs, fmt.Errorf("create %s.%s at %s: %w", d.cfg.Database, name, m.addr, readable(err)))
			}
		}
	}
	return done, errors.Join(errs...)
}

// members reads the tables of every node that answers.
func (d *DB) members(ctx context.Context, done *Completion) ([]member, error) {
	if err := d.shards.refresh(ctx, 0); err != nil {
		return nil, err
	}
	var members []member
	for i := range d.shards.count() {
		replicas, err := d.shards.replicas(i)
		if err != nil {
			return nil, err
		}
		for _, n := range replicas {
			done.Nodes = append(done.Nodes, n.addr)
			created, err := d.tablesAt(ctx, n)
			if err != nil {
				done.Unreachable[n.addr] = readable(err)
				continue
			}
			members = append(members, member{n, created})
		}
	}
	slices.Sort(done.Nodes)
	return members, nil
}

func (d *DB) tablesAt(ctx context.Context, n *node) (map[string]string, error) {
	rows, err := d.textAt(ctx, n, "SELECT name, create_table_query FROM system.tables WHERE database = "+quote(d.cfg.Database))
	if err != nil {
		return nil, err
	}
	created := make(map[string]string, len(rows))
	for _, row := range rows {
		created[row[0]] = row[1]
	}
	return created, nil
}

// createAt creates a table at m by a statement of another node.
func (d *DB) createAt(ctx context.Context, m member, all []member, name, create string, dropLost bool, done *Completion) error {
	if err := d.execAt(ctx, m.node, "CREATE DATABASE IF NOT EXISTS "+d.cfg.Database); err != nil {
		return err
	}
	err := d.execAt(ctx, m.node, create)
	if code, _, _ := exception(err); code == proto.ErrReplicaAlreadyExists {
		if !dropLost {
			return errLostReplica
		}
		if err := d.dropLost(ctx, m, all, create, done); err != nil {
			return err
		}
		done.Dropped[m.addr] = append(done.Dropped[m.addr], name)
		err = d.execAt(ctx, m.node, create)
	}
	if err != nil {
		return err
	}
	done.Created[m.addr] = append(done.Created[m.addr], name)
	d.log.Info("created a table that a node lacked", slog.String("node", m.addr), slog.String("table", name))
	return nil
}

var replicatedEngine = regexp.MustCompile(`ENGINE = Replicated\w*MergeTree\('([^']+)', '([^']+)'`)

// dropLost removes from Keeper the replica that create would have at m.
func (d *DB) dropLost(ctx context.Context, m member, all []member, create string, done *Completion) error {
	engine := replicatedEngine.FindStringSubmatch(create)
	if engine == nil {
		return errLostReplica
	}
	macros, err := d.textAt(ctx, m.node, "SELECT macro, substitution FROM system.macros")
	if err != nil {
		return fmt.Errorf("read macros: %w", err)
	}
	path, replica := engine[1], engine[2]
	for _, macro := range macros {
		path = strings.ReplaceAll(path, "{"+macro[0]+"}", macro[1])
		replica = strings.ReplaceAll(replica, "{"+macro[0]+"}", macro[1])
	}
	drop := "SYSTEM DROP REPLICA " + quote(replica) + " FROM ZKPATH " + quote(path)
	if err := d.checkLost(ctx, m, all, path, replica, done); err != nil {
		return fmt.Errorf("replica %s of %s is in Keeper, and %w; if the data of that replica is lost, run this here, and 'metaflow-server migrate up' again: %s", replica, path, err, drop)
	}
	if err := d.dropInactive(ctx, m, drop); err != nil {
		return fmt.Errorf("%s: %w", drop, err)
	}
	d.log.Info("removed a lost replica from Keeper", slog.String("node", m.addr), slog.String("replica", replica), slog.String("path", path))
	return nil
}

// sessionWait is how long a replica may count as active after its node was killed: Keeper
// ends a session after 30 seconds by default, and the node has just started again.
const (
	sessionWait  = 90 * time.Second
	sessionPause = time.Second
)

// dropInactive runs a statement that drops a replica, and waits until Keeper no longer counts
// the replica as active. No node has it, so the session is one of the past.
func (d *DB) dropInactive(ctx context.Context, m member, drop string) error {
	for start := time.Now(); ; {
		err := d.execAt(ctx, m.node, drop)
		if code, _, _ := exception(err); code != proto.ErrTableWasNotDropped || time.Since(start) > sessionWait {
			return err
		}
		d.log.Info("waiting for Keeper to end the session that a node had before it lost its data", slog.String("node", m.addr))
		if retry.Sleep(ctx, sessionPause) != nil {
			return err
		}
	}
}

// checkLost returns an error unless the replica's data is known to be gone: Keeper gives m as
// its host, no node of the cluster has a table with it, and none has detached tables that may
// be it. ClickHouse itself refuses to remove a replica that is active.
func (d *DB) checkLost(ctx context.Context, m member, all []member, path, replica string, done *Completion) error {
	for _, addr := range done.Nodes {
		if cause := done.Unreachable[addr]; cause != nil {
			return fmt.Errorf("it may belong to %s, which does not answer (%w)", addr, cause)
		}
	}
	for _, other := range all {
		tables, err := d.textAt(ctx, other.node, "SELECT database || '.' || table FROM system.replicas WHERE zookeeper_path = "+quote(path)+" AND replica_name = "+quote(replica))
		if err != nil {
			return fmt.Errorf("whose it is cannot be read at %s: %w", other.addr, err)
		}
		if len(tables) > 0 {
			return fmt.Errorf("it belongs to %s of %s: two nodes have the same macros", tables[0][0], other.addr)
		}
	}
	detached, err := d.textAt(ctx, m.node, "SELECT table FROM system.detached_tables WHERE database = "+quote(d.cfg.Database))
	if err != nil && !Answered(err) { // releases before 24.8 do not have that table
		return err
	}
	if len(detached) > 0 {
		return fmt.Errorf("this node has detached tables, %s among them, which may be it", detached[0][0])
	}
	return d.checkHost(ctx, m, path, replica)
}

// checkHost returns an error if Keeper gives another host than m for a replica. Where
// system.zookeeper is off nothing is known, and it returns nil.
func (d *DB) checkHost(ctx context.Context, m member, path, replica string) error {
	found, err := d.textAt(ctx, m.node, "SELECT value FROM system.zookeeper WHERE path = "+quote(path+"/replicas/"+replica)+" AND name = 'host'")
	if code, _, _ := exception(err); code == proto.ErrUnknownTable || err == nil && len(found) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("its host cannot be read: %w", err)
	}
	own, err := d.textAt(ctx, m.node, "SELECT name, value FROM system.server_settings WHERE name = 'interserver_http_host' UNION ALL SELECT 'fqdn', FQDN() UNION ALL SELECT 'host', hostName()")
	if err != nil {
		return fmt.Errorf("the name of this node cannot be read: %w", err)
	}
	host := hostOf(found[0][0])
	if !slices.ContainsFunc(own, func(name []string) bool { return name[1] == host }) {
		return fmt.Errorf("its host was %s", host)
	}
	return nil
}

// hostOf returns the host in a replica's address, as ClickHouse writes it to Keeper: lines
// of "key: value".
func hostOf(address string) string {
	for line := range strings.Lines(address) {
		if key, value, ok := strings.Cut(line, ": "); ok && key == "host" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// execAt runs a statement at one node.
func (d *DB) execAt(ctx context.Context, n *node, statement string) error {
	ctx, cancel := context.WithTimeout(ctx, d.ddlTimeout)
	defer cancel()
	_, err := n.run(ctx, func(ctx context.Context, c *conn) error { return c.client.Do(ctx, ch.Query{Body: statement}) })
	return err
}

// selectAt runs a query at one node whose result is one block.
func (d *DB) selectAt(ctx context.Context, n *node, query string, result proto.Results) error {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.QueryTimeout)
	defer cancel()
	_, err := n.run(ctx, func(ctx context.Context, c *conn) error {
		return c.client.Do(ctx, ch.Query{Body: query, Result: result})
	})
	return err
}

// textAt runs a query at one node whose columns are texts and returns the rows.
func (d *DB) textAt(ctx context.Context, n *node, query string) (rows [][]string, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.QueryTimeout)
	defer cancel()
	var result proto.Results
	_, err = n.run(ctx, func(ctx context.Context, c *conn) error {
		return c.client.Do(ctx, ch.Query{Body: query, Result: result.Auto(), OnResult: func(_ context.Context, block proto.Block) error {
			for i := range block.Rows {
				row := make([]string, len(result))
				for j, column := range result {
					texts, ok := column.Data.(proto.ColumnOf[string])
					if !ok {
						return fmt.Errorf("column %s of %q is no text", column.Name, query)
					}
					row[j] = texts.Row(i)
				}
				rows = append(rows, row)
			}
			return nil
		}})
	})
	return rows, err
}
