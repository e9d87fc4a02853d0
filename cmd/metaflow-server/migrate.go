package main

import (
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
)

var clickhouseFlags = map[string]string{
	"clickhouse-addresses": "clickhouse.addresses",
	"clickhouse-database":  "clickhouse.database",
	"clickhouse-cluster":   "clickhouse.cluster",
}

func newMigrate() *cobra.Command {
	up := &cobra.Command{
		Use: "up", Args: program.Args(cobra.NoArgs),
		Short: "Bring the schema up to date, on every node of a cluster; waits for ClickHouse",
		Long: `Bring the schema up to date; waits for ClickHouse.

In a cluster, nodes that lack tables get them, such as one that joined or one that came back
without its data: it removes the lost replicas of such a node from Keeper, and ClickHouse
fetches the rows from the other replicas of the shard. It exits with status 1 if the schema
is not at the newest version afterwards, or if a node still lacks tables.`,
	}
	withDB(up, migrateUp)

	status := &cobra.Command{Use: "status", Short: "List the migrations; exits with status 1 if some are missing", Args: program.Args(cobra.NoArgs)}
	withDB(status, func(cmd *cobra.Command, _ *server, db *clickhouse.DB) error {
		all, err := db.MigrationStatus(cmd.Context())
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "VERSION\tNAME\tAPPLIED")
		missing := 0
		for _, m := range all {
			applied := "no"
			if m.Applied {
				applied = m.At.UTC().Format("2006-01-02 15:04:05")
			} else {
				missing++
			}
			fmt.Fprintf(w, "%04d\t%s\t%s\n", m.Version, m.Name, applied)
		}
		if err := w.Flush(); err != nil {
			return err
		}
		if missing > 0 {
			return fmt.Errorf("%d migrations are missing: run 'metaflow-server migrate up'", missing)
		}
		return nil
	})

	down := &cobra.Command{Use: "down", Short: "Revert the newest migration and delete its data", Args: program.Args(cobra.NoArgs)}
	yes := down.Flags().Bool("yes", false, "confirm that the data will be deleted")
	withDB(down, func(cmd *cobra.Command, _ *server, db *clickhouse.DB) error {
		if !*yes {
			return program.Usage("migrate down deletes tables with their data: confirm with --yes")
		}
		taken, err := db.MigrateDown(cmd.Context())
		if err != nil {
			return err
		}
		if taken == nil {
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "nothing to revert")
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "reverted %04d %s\n", taken.Version, taken.Name)
		return err
	})
	check := &cobra.Command{
		Use: "check", Args: program.Args(cobra.NoArgs),
		Short: "Check what ClickHouse and Kafka need, and print what to do; changes nothing",
		Long: `Check what MetaFlow needs of ClickHouse and Kafka, and print what to do. It changes nothing,
and exits with status 1 if it finds a problem. A schema that 'migrate up' has yet to make or
to bring up to date is none.

On every node of the cluster: that it answers, the definition of the cluster, ClickHouse
Keeper, the macros, and the grants of clickhouse.username. Then insert_quorum beside
kafka.replication, and the rights of the user at Kafka: Create, Describe, Read and Write on
topics whose names begin with "metaflow.", Read on consumer groups that begin with
"metaflow-".`,
	}
	withDB(check, checkSurroundings)
	return program.Group("migrate", "Manage the schema in ClickHouse", up, status, down, check)
}

// ensureReadUser creates the user of the role query, if it is not clickhouse.username.
// Where an operator has to do it, it says so.
func ensureReadUser(cmd *cobra.Command, cfg *server, db *clickhouse.DB) error {
	user := cfg.Query.Username
	if user == "" || user == cfg.ClickHouse.Username {
		return nil
	}
	err := db.EnsureReadUser(cmd.Context(), user, cfg.Query.Password, cfg.readLimits())
	if errors.Is(err, clickhouse.ErrNoAccessManagement) {
		_, err = fmt.Fprintf(cmd.ErrOrStderr(), "query.username: create the user %s yourself, as docs/security.md shows: %v\n", user, err)
	}
	return err
}

func migrateUp(cmd *cobra.Command, cfg *server, db *clickhouse.DB) error {
	if err := db.Wait(cmd.Context()); err != nil {
		return err
	}
	nodes, incomplete := db.CompleteNodes(cmd.Context())
	for _, addr := range nodes.Nodes {
		if dropped := nodes.Dropped[addr]; len(dropped) > 0 {
			fmt.Fprintf(cmd.OutOrStdout(), "%s: removed its lost replicas of %s from Keeper\n", addr, strings.Join(dropped, ", "))
		}
		if created := nodes.Created[addr]; len(created) > 0 {
			fmt.Fprintf(cmd.OutOrStdout(), "%s: created %s\n", addr, strings.Join(created, ", "))
		}
		if err := nodes.Unreachable[addr]; err != nil {
			fmt.Fprintf(cmd.OutOrStdout(), "%s: not checked, it does not answer: %v; run this again if it comes back without its tables\n", addr, err)
		}
	}
	if incomplete != nil {
		return incomplete
	}
	if err := db.Migrate(cmd.Context(), cfg.Retention); err != nil {
		return err
	}
	if err := db.EnsureTableSettings(cmd.Context(), cfg.Kafka.Partitions); err != nil {
		return err
	}
	if err := ensureReadUser(cmd, cfg, db); err != nil {
		return err
	}
	current, wanted, err := db.SchemaVersion(cmd.Context())
	if err != nil {
		return err
	}
	if current < wanted {
		return fmt.Errorf("the schema is at version %d, and not at %d", current, wanted)
	}
	where := ""
	if n := len(nodes.Nodes); n > 0 {
		where = fmt.Sprintf(" on %d of %d nodes", n-len(nodes.Unreachable), n)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "schema is at version %d%s\n", current, where)
	return err
}

// withDB makes cmd run f with the configuration and a database.
func withDB(cmd *cobra.Command, f func(*cobra.Command, *server, *clickhouse.DB) error) {
	flags := configured.AddFlags(cmd, clickhouseFlags)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := flags.Load()
		if err != nil {
			return err
		}
		db, err := clickhouse.Open(cfg.ClickHouse, cfg.Log.Logger(cmd.ErrOrStderr()))
		if err != nil {
			return err
		}
		return errors.Join(f(cmd, cfg, db), db.Close())
	}
}
