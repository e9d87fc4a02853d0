package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/deadletter"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/schema"
)

var kafkaFlags = map[string]string{"kafka-brokers": "kafka.brokers"}

func newDeadLetter() *cobra.Command {
	list := &cobra.Command{Use: "list", Short: "List records that could not be stored, with the cause", Args: program.Args(cobra.NoArgs)}
	withKafka(list, func(cmd *cobra.Command, _ *server, client *kafka.Client) error {
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "OFFSET\tDIVERTED\tRECEIVED\tFROM\tITEMS\tBYTES\tCAUSE")
		n := 0
		err := deadletter.Each(cmd.Context(), client, schema.TopicDeadLetter, signals, func(e deadletter.Entry) error {
			n++
			fmt.Fprintf(w, "%d/%d\t%s\t%s\t%s/%d/%d\t%d\t%d\t%s\n", e.At.Partition, e.At.Offset,
				atSecond(e.Time), atSecond(e.Meta.Received), e.Topic, e.Partition, e.Offset, e.Items, len(e.Value), e.Cause)
			return nil
		})
		if err := errors.Join(err, w.Flush()); err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), program.Count(n, "dead letter"))
		return err
	})

	replay := &cobra.Command{
		Use:   "replay",
		Short: "Send the spans and flows of dead letters through the pipeline again",
		Long: `replay sends the spans and flows of dead letters to their topics again. Items that are
already stored are recognized by their ids and not stored twice, so it is safe to
repeat. Letters stay in the dead-letter topic until its retention removes them.`,
		Args: program.Args(cobra.NoArgs),
	}
	since := replay.Flags().Duration("since", 0, "only letters diverted within this time; 0 means all")
	withKafka(replay, func(cmd *cobra.Command, cfg *server, client *kafka.Client) error {
		return runReplay(cmd, cfg, client, *since)
	})
	return program.Group("deadletter", "List and replay records that could not be stored", list, replay)
}

func runReplay(cmd *cobra.Command, cfg *server, client *kafka.Client, since time.Duration) error {
	producing, stop := context.WithCancel(context.WithoutCancel(cmd.Context()))
	defer stop()
	var producers errgroup.Group
	var targets []deadletter.Target
	for _, sig := range signals {
		partitions, err := client.Partitions(cmd.Context(), sig.Topic)
		if err != nil {
			stop()
			return errors.Join(err, producers.Wait())
		}
		producer := client.NewProducer(sig.Topic, kafka.ProducerOptions{})
		producers.Go(func() error { return producer.Run(producing) })
		targets = append(targets, deadletter.Target{
			Signal: sig, Producer: producer, Partitions: partitions, MaxRecordBytes: int(cfg.Kafka.MaxRecordBytes),
		})
	}
	begun := time.Now()
	report, err := deadletter.Replay(cmd.Context(), client, schema.TopicDeadLetter, targets, func(e deadletter.Entry) bool {
		return since == 0 || begun.Sub(e.Time) <= since
	})
	stop()
	err = errors.Join(err, producers.Wait())
	fmt.Fprintln(cmd.OutOrStdout(), summary(report))
	return err
}

// atSecond formats t, or returns "-" for the zero time.
func atSecond(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05")
}

// summary describes the result of a replay.
func summary(r deadletter.Report) string {
	var sent []string
	for _, sig := range signals {
		sent = append(sent, program.Count(r.Items[sig.Topic], sig.Item))
	}
	parts := []string{
		program.Count(r.Letters, "letter") + " read",
		strings.Join(sent, " and ") + " sent again",
		program.Count(r.Skipped, "letter") + " skipped because their data is unreadable",
	}
	if r.Copies > 0 {
		parts = append(parts, program.Count(r.Copies, "letter")+" omitted as copies of others")
	}
	if r.Refused > 0 {
		parts = append(parts, program.Count(r.Refused, "item")+" refused for ids or a size that writers do not store")
	}
	return strings.Join(parts, ", ")
}

// withKafka makes cmd run f with the configuration and a Kafka client.
func withKafka(cmd *cobra.Command, f func(*cobra.Command, *server, *kafka.Client) error) {
	flags := configured.AddFlags(cmd, kafkaFlags)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := flags.Load()
		if err != nil {
			return err
		}
		client, err := kafka.New(cfg.Kafka, kafka.Options{Logger: cfg.Log.Logger(cmd.ErrOrStderr())})
		if err != nil {
			return err
		}
		defer client.Close()
		return f(cmd, cfg, client)
	}
}
