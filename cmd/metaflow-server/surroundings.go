package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/schema"
)

// checkTimeout bounds the questions to Kafka.
const checkTimeout = 30 * time.Second

// checkSurroundings prints what ClickHouse and Kafka lack, and what to do about it.
func checkSurroundings(cmd *cobra.Command, cfg *server, db *clickhouse.DB) error {
	findings := db.Check(cmd.Context(), cfg.Kafka.Replication)
	todo := ""
	if !slices.ContainsFunc(findings, isProblem) {
		var schema clickhouse.Finding
		if schema, todo = checkSchema(cmd.Context(), cfg, db); todo == "" {
			findings = append(findings, schema)
		}
	}
	client, err := kafka.New(cfg.Kafka, kafka.Options{})
	if err != nil {
		return err
	}
	defer client.Close()
	findings = append(findings, checkKafka(cmd.Context(), cfg, client)...)
	out := cmd.OutOrStdout()
	problems := 0
	for _, f := range findings {
		if !isProblem(f) {
			fmt.Fprintf(out, "ok       %s: %s\n", f.Check, f.Where)
			continue
		}
		problems++
		fmt.Fprintf(out, "PROBLEM  %s: %s: %s\n         %s\n", f.Check, f.Where, f.Problem, f.Fix)
	}
	switch {
	case todo != "":
		fmt.Fprintf(out, "TO DO    schema: %s\n", todo)
	case problems == 0:
		fmt.Fprintln(out, "no problem found")
	}
	if problems > 0 {
		return fmt.Errorf("%s found", program.Count(problems, "problem"))
	}
	return nil
}

func isProblem(f clickhouse.Finding) bool { return f.Problem != "" }

// checkSchema looks at the version of the schema, or says how to get there, which is no problem:
// whoever checks may be about to do it.
func checkSchema(ctx context.Context, cfg *server, db *clickhouse.DB) (found clickhouse.Finding, todo string) {
	found = clickhouse.Finding{Check: "schema", Where: "database " + cfg.ClickHouse.Database}
	current, wanted, err := db.SchemaVersion(ctx)
	state := fmt.Sprintf("at version %d of %d", current, wanted)
	switch {
	case err != nil:
		found.Problem, found.Fix = err.Error(), "see what 'metaflow-server migrate status' says"
		return found, ""
	case current >= wanted:
		found.Where += fmt.Sprintf(", version %d", current)
		return found, ""
	case current == 0:
		state = "without MetaFlow's tables"
	}
	todo = fmt.Sprintf("the %s is %s; run 'metaflow-server migrate up'", found.Where, state)
	if cfg.Migrate {
		todo += ", or start a server with the role writer, which does it too"
	}
	return found, todo
}

// checkKafka checks what servers with all roles do with topics and groups.
func checkKafka(ctx context.Context, cfg *server, client *kafka.Client) (findings []clickhouse.Finding) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if err := client.Ping(ctx); err != nil {
		return []clickhouse.Finding{{Check: "Kafka", Where: "brokers", Problem: err.Error(), Fix: "start Kafka, or correct kafka.brokers, kafka.tls and kafka.sasl"}}
	}
	principal := "User:NAME"
	if cfg.Kafka.SASL.Username != "" {
		principal = "User:" + cfg.Kafka.SASL.Username
	}
	rights := "kafka-acls.sh --add --allow-principal " + principal + " --resource-pattern-type prefixed --topic metaflow. --operation Create --operation Describe --operation Read --operation Write; " +
		"kafka-acls.sh --add --allow-principal " + principal + " --resource-pattern-type prefixed --group metaflow- --operation Read"
	for _, need := range []kafka.Access{
		{Topic: schema.TopicSpans, Read: true, Write: true, Group: cfg.Writer.Group},
		{Topic: schema.TopicFlows, Read: true, Write: true, Group: cfg.FlowWriter.Group},
		{Topic: schema.TopicResources, Read: true, Write: true, Group: cfg.Resources.Group},
		{Topic: schema.TopicControl, Read: true, Write: true},
		{Topic: schema.TopicDeadLetter, Read: true, Write: true},
	} {
		f := clickhouse.Finding{Check: "Kafka", Where: "topic " + need.Topic}
		switch err := client.CheckAccess(ctx, need); {
		case errors.Is(err, kafka.ErrNoTopic): // at the first start, that is as it should be
			f.Where += " does not exist yet: a server creates it, with the rights Create and Describe"
		case err != nil:
			f.Problem, f.Fix = strings.TrimPrefix(err.Error(), f.Where+": "), "if the user lacks rights: "+rights
		}
		findings = append(findings, f)
	}
	return findings
}
