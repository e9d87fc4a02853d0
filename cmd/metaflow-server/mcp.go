package main

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/query"
	"github.com/metaflowys/metaflow-server/pkg/query/mcp"
)

func newMCP() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "mcp",
		Short: "Answer a model's questions about traces and the network, over standard I/O",
		Long: `mcp speaks the Model Context Protocol on standard input and output until the input
ends: a model's client starts it. It reads ClickHouse as the role query does, within
the limits of query.*, and needs no running server. Its tools are what_is_wrong, edges,
find_traces, trace, missing_span and sql. The role query serves the same at /mcp.`,
		Args: program.Args(cobra.NoArgs),
	}
	flags := configured.AddFlags(cmd, clickhouseFlags)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := flags.Load()
		if err != nil {
			return err
		}
		log := cfg.Log.Logger(cmd.ErrOrStderr())
		db, err := cfg.openReader(log)
		if err != nil {
			return err
		}
		reader := query.NewReader(cfg.Query, db, cfg.ClickHouse.Database, query.Options{Logger: log})
		err = mcp.NewServer(reader, db, program.Version()).Run(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout())
		if errors.Is(err, io.EOF) || errors.Is(err, context.Canceled) {
			err = nil
		}
		return errors.Join(err, db.Close())
	}
	return cmd
}
