package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/deadletter"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

var kafkaFlags = map[string]string{"kafka-brokers": "kafka.brokers"}

func newDeadLetter() *cobra.Command {
	return program.Group("deadletter", "List, show, replay and drop records that could not be stored",
		newLetterList(), newLetterShow(), newLetterReplay(), newLetterDrop())
}

// selection is what the flags of a command select.
type selection struct {
	only          []string
	from, cause   string
	since         time.Duration
	after, before string
	all           bool
}

func (s *selection) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&s.only, "only", nil, "only these letters: PARTITION/OFFSET or PARTITION/FIRST-LAST of the dead-letter topic, as list prints them")
	f.StringVar(&s.from, "from", "", "only letters from TOPIC, TOPIC/PARTITION or TOPIC/PARTITION/OFFSET")
	f.StringVar(&s.cause, "cause", "", "only letters whose cause contains this text")
	program.DurationVar(f, &s.since, "since", 0, "only letters diverted within this time; 0 means all")
	f.StringVar(&s.after, "after", "", "only letters diverted at or after this time (RFC 3339)")
	f.StringVar(&s.before, "before", "", "only letters diverted before this time (RFC 3339)")
}

// empty reports whether no flag selects anything.
func (s *selection) empty() bool {
	return len(s.only) == 0 && s.from == "" && s.cause == "" && s.since == 0 && s.after == "" && s.before == ""
}

// filter returns a function that reports whether a letter is selected.
func (s *selection) filter() (func(deadletter.Entry) bool, error) {
	type span struct {
		partition   int
		first, last int64
	}
	var spans []span
	for _, text := range s.only {
		p, first, last, err := deadletter.ParsePositions(text)
		if err != nil {
			return nil, program.Usage("--only: %w", err)
		}
		spans = append(spans, span{p, first, last})
	}
	var after, before time.Time
	for _, t := range []struct {
		name, text string
		to         *time.Time
	}{{"after", s.after, &after}, {"before", s.before, &before}} {
		if t.text == "" {
			continue
		}
		var err error
		if *t.to, err = time.Parse(time.RFC3339, t.text); err != nil {
			return nil, program.Usage("--%s: %q is no time such as 2026-01-02T15:04:05Z", t.name, t.text)
		}
	}
	if s.since > 0 {
		if begin := time.Now().Add(-s.since); begin.After(after) {
			after = begin
		}
	}
	return func(e deadletter.Entry) bool {
		in := len(spans) == 0
		for _, span := range spans {
			in = in || e.At.Partition == span.partition && span.first <= e.At.Offset && e.At.Offset <= span.last
		}
		source := fmt.Sprintf("%s/%d/%d/", e.Topic, e.Partition, e.Offset)
		return in && (s.all || e.State == deadletter.Open) &&
			(s.from == "" || strings.HasPrefix(source, strings.TrimSuffix(s.from, "/")+"/")) &&
			strings.Contains(e.Cause, s.cause) && !e.Time.Before(after) && (before.IsZero() || e.Time.Before(before))
	}, nil
}

// letter is a dead letter as JSON.
type letter struct {
	ID        string            `json:"id"`
	State     string            `json:"state,omitempty"`
	Damaged   string            `json:"damaged,omitempty"`
	Next      int64             `json:"next_offset,omitempty"` // of a damaged stretch
	Diverted  time.Time         `json:"diverted,omitzero"`
	Received  time.Time         `json:"received,omitzero"`
	Topic     string            `json:"topic,omitempty"`
	Partition int               `json:"partition"`
	Offset    int64             `json:"offset"`
	Agent     string            `json:"agent,omitempty"`
	Items     int               `json:"items"`
	Bytes     int               `json:"bytes"`
	Truncated int64             `json:"truncated_bytes,omitempty"`
	Cause     string            `json:"cause,omitempty"`
	Headers   map[string]string `json:"headers,omitempty"`
	Request   json.RawMessage   `json:"request,omitempty"`
	Value     string            `json:"value,omitempty"` // base64, of what is no request
}

func letterOf(e *deadletter.Entry) letter {
	if e.Damaged != nil {
		return letter{ID: idOf(e), Damaged: e.Damaged.Error(), Next: e.Next}
	}
	return letter{
		ID: idOf(e), State: string(e.State), Diverted: e.Time.UTC(), Received: e.Meta.Received.UTC(), Topic: e.Topic, Partition: e.Partition, Offset: e.Offset,
		Agent: e.Meta.Agent, Items: e.Items, Bytes: len(e.Value), Truncated: e.Truncated, Cause: e.Cause,
	}
}

func idOf(e *deadletter.Entry) string { return fmt.Sprintf("%d/%d", e.At.Partition, e.At.Offset) }

const (
	formatTable = "table"
	formatJSON  = "json"
)

func addFormat(cmd *cobra.Command) *string {
	return cmd.Flags().StringP("output", "o", formatTable, "format: table or json")
}

func checkFormat(format string) error {
	if format != formatTable && format != formatJSON {
		return program.Usage("--output: %q is neither %s nor %s", format, formatTable, formatJSON)
	}
	return nil
}

func newLetterList() *cobra.Command {
	var s selection
	cmd := &cobra.Command{
		Use: "list", Short: "List records that could not be stored, with the cause", Args: program.Args(cobra.NoArgs),
		Long: `list prints the dead letters that nobody has replayed or dropped; --all prints the others
too, with their state. OFFSET is the id that show, replay --only and drop --only take.
Records of the topic that cannot be read are listed as damaged and passed over. The exit
status is 0 even if there are letters.`,
		Example: `  metaflow-server deadletter list --config metaflow.yaml --since 24h
  metaflow-server deadletter list --cause VIOLATED_CONSTRAINT -o json`,
	}
	s.addFlags(cmd)
	cmd.Flags().BoolVar(&s.all, "all", false, "also letters that were replayed or dropped")
	format := addFormat(cmd)
	withKafka(cmd, func(cmd *cobra.Command, _ *server, client *kafka.Client) error {
		keep, err := s.filter()
		if err := errors.Join(err, checkFormat(*format)); err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		state := func(deadletter.Entry) string { return "" }
		if *format == formatTable {
			columns := "OFFSET\tDIVERTED\tRECEIVED\tFROM\tITEMS\tBYTES\t"
			if s.all {
				columns += "STATE\t"
				state = func(e deadletter.Entry) string { return stateText(e.State) + "\t" }
			}
			fmt.Fprintln(w, columns+"CAUSE")
		}
		n, damaged := 0, 0
		progress := newProgress(cmd.ErrOrStderr(), "letters read")
		err = deadletter.Each(cmd.Context(), client, schema.TopicDeadLetter, signals, func(e deadletter.Entry) error {
			progress.step()
			switch {
			case !e.Readable():
				damaged++
			case !keep(e):
				return nil
			default:
				n++
			}
			if *format == formatJSON {
				return json.NewEncoder(out).Encode(letterOf(&e))
			}
			if !e.Readable() {
				fmt.Fprintf(w, "%s\t-\t-\t-\t-\t-\t%sdamaged up to offset %d: %s\n", idOf(&e), state(e), e.Next-1, oneLine(e.Damaged.Error()))
				return nil
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s/%d/%d\t%d\t%d\t%s%s\n", idOf(&e),
				atSecond(e.Time), atSecond(e.Meta.Received), oneLine(e.Topic), e.Partition, e.Offset, e.Items, len(e.Value), state(e), oneLine(e.Cause))
			return nil
		})
		if err := errors.Join(err, w.Flush()); err != nil || *format == formatJSON {
			return err
		}
		text := program.Count(n, "dead letter")
		if damaged > 0 {
			text += ", " + program.Count(damaged, "damaged part") + " of the topic passed over"
		}
		_, err = fmt.Fprintln(out, text)
		return err
	})
	return cmd
}

func stateText(s deadletter.State) string {
	if s == deadletter.Open {
		return "open"
	}
	return oneLine(string(s))
}

// oneLine keeps a text from breaking the table: causes quote values.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "\uFFFD"))
}

func newLetterShow() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show OFFSET", Short: "Show one dead letter in full", Args: program.Args(cobra.ExactArgs(1)),
		Long: `show prints the cause, the headers and the decoded items of a dead letter. OFFSET is
PARTITION/OFFSET as list prints it. The exit status is 1 if there is no such letter, or
if it cannot be read.`,
		Example: `  metaflow-server deadletter show 0/17 --config metaflow.yaml
  metaflow-server deadletter show 0/17 --out letter.pb`,
	}
	format := addFormat(cmd)
	file := cmd.Flags().String("out", "", "save the value, as it is, to this new file")
	withKafka(cmd, func(cmd *cobra.Command, _ *server, client *kafka.Client) error {
		partition, first, last, err := deadletter.ParsePositions(cmd.Flags().Arg(0))
		if err == nil && first != last {
			err = fmt.Errorf("%q is not one letter", cmd.Flags().Arg(0))
		}
		if err != nil {
			return program.Usage("%w", err)
		}
		if err := checkFormat(*format); err != nil {
			return err
		}
		at := deadletter.Position{Partition: partition, Offset: first}
		found := false
		err = deadletter.Each(cmd.Context(), client, schema.TopicDeadLetter, signals, func(e deadletter.Entry) error {
			if e.At.Partition != partition || first < e.At.Offset || e.Next <= first || e.Damaged == nil && e.At != at {
				return nil
			}
			found = true
			if e.Damaged != nil {
				return fmt.Errorf("read dead letter %d/%d: %w", partition, first, e.Damaged)
			}
			if *file != "" {
				if err := saveNew(*file, e.Value); err != nil {
					return err
				}
			}
			return show(cmd.OutOrStdout(), &e, *format)
		})
		if err == nil && !found {
			err = fmt.Errorf("dead letter %d/%d: there is none: retention may have removed it, or the offset is of another record", partition, first)
		}
		return err
	})
	return cmd
}

// saveNew writes a file that must not exist.
func saveNew(name string, value []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(value)
	return errors.Join(err, f.Close())
}

// show prints one letter.
func show(out io.Writer, e *deadletter.Entry, format string) error {
	l := letterOf(e)
	l.Headers = make(map[string]string)
	for _, h := range e.Headers {
		l.Headers[h.Key] = headerText(h.Value)
	}
	request, err := requestJSON(e)
	if format == formatJSON {
		if l.Request = request; err != nil {
			l.Value = base64.StdEncoding.EncodeToString(e.Value)
		}
		return json.NewEncoder(out).Encode(l)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "offset:\t%s\nstate:\t%s\ndiverted:\t%s\nreceived:\t%s\nfrom:\t%s/%d/%d\nagent:\t%s\nitems:\t%d\nbytes:\t%d\ncause:\t%s\n",
		l.ID, stateText(e.State), atSecond(e.Time), atSecond(e.Meta.Received), oneLine(e.Topic), e.Partition, e.Offset, oneLine(e.Meta.Agent), e.Items, len(e.Value), oneLine(e.Cause))
	if e.Truncated > 0 {
		fmt.Fprintf(w, "left out:\t%d bytes, which Kafka refused\n", e.Truncated)
	}
	for _, h := range e.Headers {
		fmt.Fprintf(w, "header %s:\t%s\n", oneLine(h.Key), oneLine(headerText(h.Value)))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	switch {
	case len(e.Value) == 0:
		return nil
	case err == nil:
		var indented bytes.Buffer
		if err := json.Indent(&indented, request, "", "  "); err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "\n%s\n", indented.Bytes())
		return err
	default:
		const most = 1 << 10
		_, err = fmt.Fprintf(out, "\nThe value is no request of its topic (%v). It begins:\n%s", err, hex.Dump(e.Value[:min(len(e.Value), most)]))
		return err
	}
}

// headerText returns a header as text where it is one, or else in hexadecimal.
func headerText(value []byte) string {
	if utf8.Valid(value) && !bytes.ContainsFunc(value, func(r rune) bool { return r < ' ' }) {
		return string(value)
	}
	return "0x" + hex.EncodeToString(value)
}

// requestJSON decodes the value of a letter.
func requestJSON(e *deadletter.Entry) (json.RawMessage, error) {
	var m proto.Message
	switch e.Topic {
	case schema.TopicSpans:
		m = new(coltracepb.ExportTraceServiceRequest)
	case schema.TopicFlows:
		m = new(agentv1.ExportFlowsRequest)
	default:
		return nil, fmt.Errorf("topic %q is not known", e.Topic)
	}
	if err := proto.Unmarshal(e.Value, m); err != nil {
		return nil, err
	}
	return protojson.Marshal(m)
}

func newLetterReplay() *cobra.Command {
	var s selection
	cmd := &cobra.Command{
		Use:   "replay",
		Short: "Send the spans and flows of dead letters through the pipeline again",
		Long: `replay sends the spans and flows of dead letters to their topics again, and marks the
letters as replayed. Items that are already stored are recognized by their ids and not
stored twice, so it is safe to repeat. What fails again becomes a new letter. Letters stay
in the dead-letter topic until its retention removes them.

Of several operators that replay or drop at the same time, one is at work and the others
wait. Letters whose data cannot be read are counted and passed over; the exit status is 0.`,
		Example: `  metaflow-server deadletter replay --config metaflow.yaml --since 24h
  metaflow-server deadletter replay --only 0/17 --only 0/20-25
  metaflow-server deadletter replay --cause VIOLATED_CONSTRAINT --again`,
		Args: program.Args(cobra.NoArgs),
	}
	s.addFlags(cmd)
	cmd.Flags().BoolVar(&s.all, "again", false, "also letters that were replayed or dropped before")
	withKafka(cmd, func(cmd *cobra.Command, cfg *server, client *kafka.Client) error {
		keep, err := s.filter()
		if err != nil {
			return err
		}
		return runReplay(cmd, cfg, client, keep)
	})
	return cmd
}

func newLetterDrop() *cobra.Command {
	var s selection
	var everything bool
	cmd := &cobra.Command{
		Use: "drop", Short: "Mark dead letters as dropped, so that list and replay pass over them",
		Long: `drop marks the selected letters as handled without storing them. Kafka keeps them, and
list --all and replay --again still find them, until the retention of the topic ends.`,
		Example: `  metaflow-server deadletter drop --only 0/17 --config metaflow.yaml
  metaflow-server deadletter drop --cause malformed --before 2026-01-02T00:00:00Z`,
		Args: program.Args(cobra.NoArgs),
	}
	s.addFlags(cmd)
	cmd.Flags().BoolVar(&everything, "everything", false, "every letter, where no other flag selects some")
	withKafka(cmd, func(cmd *cobra.Command, _ *server, client *kafka.Client) error {
		keep, err := s.filter()
		if err != nil {
			return err
		}
		if s.empty() && !everything {
			return program.Usage("select letters, or say --everything")
		}
		dropped := 0
		err = exclusively(cmd, client, func(ctx context.Context, marker *deadletter.Marker) error {
			n, err := deadletter.Drop(ctx, client, schema.TopicDeadLetter, signals, marker, keep)
			dropped += n
			return err
		})
		fmt.Fprintln(cmd.OutOrStdout(), program.Count(dropped, "letter")+" dropped")
		return err
	})
	return cmd
}

// letterGroup is the consumer group whose member may replay and drop letters.
const letterGroup = "metaflow-dead-letter"

// exclusively calls f while no other operator does the same. Membership of a consumer
// group decides: the topic has one partition, and who owns it is at work. When the
// partition goes to another member, f is called again once it is back, and finds what
// was done by its marks.
func exclusively(cmd *cobra.Command, client *kafka.Client, f func(ctx context.Context, marker *deadletter.Marker) error) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	producing, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	marks := client.NewProducer(schema.TopicDeadLetter, kafka.ProducerOptions{})
	var producer errgroup.Group
	producer.Go(func() error { return marks.Run(producing) })

	waiting := time.AfterFunc(waitNotice, func() {
		fmt.Fprintln(cmd.ErrOrStderr(), "waiting for the dead-letter topic: another replay or drop may be at work")
	})
	defer waiting.Stop()
	var done bool
	err := client.NewGroup(letterGroup, schema.TopicDeadLetter, kafka.GroupOptions{}).Run(ctx, func(owned context.Context, claim *kafka.Claim) error {
		waiting.Stop()
		if claim.Partition() != 0 { // an operator gave the topic more; the first one decides
			<-owned.Done()
			return nil
		}
		err := f(owned, &deadletter.Marker{Producer: marks, Until: claim.Lease})
		if owned.Err() != nil && ctx.Err() == nil || errors.Is(err, deadletter.ErrNotOwned) {
			return nil // somebody else's turn
		}
		done = err == nil
		cancel()
		return err
	})
	stop()
	if err == nil && !done {
		err = context.Cause(cmd.Context())
	}
	return errors.Join(err, producer.Wait())
}

// waitNotice is after how long an operator is told what is waited for.
const waitNotice = 10 * time.Second

func runReplay(cmd *cobra.Command, cfg *server, client *kafka.Client, keep func(deadletter.Entry) bool) error {
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
	total := deadletter.Report{Items: make(map[string]int)}
	progress := newProgress(cmd.ErrOrStderr(), "letters replayed")
	err := exclusively(cmd, client, func(ctx context.Context, marker *deadletter.Marker) error {
		report, err := deadletter.Replay(ctx, client, schema.TopicDeadLetter, targets, marker, func(e deadletter.Entry) bool {
			if !keep(e) {
				return false
			}
			progress.step()
			return true
		})
		total.Add(report)
		return err
	})
	stop()
	err = errors.Join(err, producers.Wait())
	fmt.Fprintln(cmd.OutOrStdout(), summary(total))
	return err
}

// progress reports how far long work is, every few seconds.
type progress struct {
	to   io.Writer
	what string
	n    int
	next time.Time
}

const progressEvery = 5 * time.Second

func newProgress(to io.Writer, what string) *progress {
	return &progress{to: to, what: what, next: time.Now().Add(progressEvery)}
}

func (p *progress) step() {
	p.n++
	if now := time.Now(); now.After(p.next) {
		p.next = now.Add(progressEvery)
		fmt.Fprintf(p.to, "%d %s\n", p.n, p.what)
	}
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
	if r.Damaged > 0 {
		parts = append(parts, program.Count(r.Damaged, "damaged part")+" of the topic passed over")
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
