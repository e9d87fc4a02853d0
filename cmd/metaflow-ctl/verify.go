package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/config"
	"github.com/metaflowys/metaflow-server/pkg/opshttp"
	"github.com/metaflowys/metaflow-server/pkg/values"
	"github.com/metaflowys/metaflow-server/pkg/verify"
)

// verifyConfig is the configuration of verify: METAFLOW_ variables, a file and flags. The
// section of ClickHouse is the server's.
type verifyConfig struct {
	ClickHouse clickhouse.Config `mapstructure:"clickhouse"`
	Verify     verify.Config     `mapstructure:"verify"`
	HTTP       opshttp.Config    `mapstructure:"http"`
	Log        program.Log       `mapstructure:"log"`
}

func defaultVerify() *verifyConfig {
	c := &verifyConfig{ClickHouse: clickhouse.DefaultConfig(), Verify: verify.DefaultConfig(), HTTP: opshttp.DefaultConfig(), Log: program.DefaultLog()}
	c.HTTP.Listen = "127.0.0.1:20418"
	c.Log.Format = "text"
	return c
}

// Validate reports every problem, each by its key.
func (c *verifyConfig) Validate() error {
	return errors.Join(
		config.Section("clickhouse", c.ClickHouse.Validate()), config.Section("verify", c.Verify.Validate()),
		config.Section("http", c.HTTP.Validate()), config.Section("log", c.Log.Validate()),
	)
}

var verifyConfigured = program.Configured[*verifyConfig]{New: defaultVerify}

// verifyFlags maps flags to keys.
var verifyFlags = map[string]string{
	"endpoint": "verify.endpoint", "otlp-token-file": "verify.token_file", "spans": "verify.spans", "duration": "verify.duration",
	"rate": "verify.rate", "batch": "verify.batch", "late": "verify.late", "lost-after": "verify.lost_after", "recheck": "verify.recheck",
	"clickhouse": "clickhouse.addresses", "database": "clickhouse.database", "clickhouse-user": "clickhouse.username", "keep": "verify.keep", "listen": "http.listen",
}

func newVerify(o *options) *cobra.Command {
	var forever bool
	cmd := &cobra.Command{
		Use: "verify", Short: "Send spans through the pipeline and check that each is stored once", Args: program.Args(cobra.NoArgs),
		Long: `verify sends spans of its own, through an agent or a server, and asks ClickHouse for
them. It counts the spans that are stored, lost, stored twice, damaged or late, and how
long they took from acknowledgement to visibility in SQL.

  metaflow-ctl verify --endpoint http://NODE:38086 --clickhouse HOST:9000
  metaflow-ctl verify --endpoint grpc://HOST:20035 --spans 10000 --rate 1000
  metaflow-ctl verify --forever --rate 10       # serves /metrics on http.listen

Its spans have service_name metaflow-verify. It does not use the server's REST API: of
the global flags only --output has an effect. METAFLOW_CLICKHOUSE_PASSWORD holds
ClickHouse's password; 'verify config print' shows every key of the file.

Exit status: 0 if every span was acknowledged and stored in time, once, as it was sent;
1 if not, or if a signal ended the run early; 2 if the command line or the configuration
is invalid.`,
	}
	flags := verifyConfigured.AddFlags(cmd, verifyFlags)
	cmd.Flags().Lookup("clickhouse-user").Usage = "user that may SELECT from the tables"
	cmd.Flags().Lookup("database").Usage = "database of the tables"
	unending := defaultVerify()
	foreverDefaults(&unending.Verify)
	cmd.Flags().BoolVar(&forever, "forever", false, fmt.Sprintf("send until a signal ends it, and serve metrics; --spans and --duration are ignored, and the defaults are --rate %g, --lost-after %s, --recheck %s and --keep %s",
		unending.Verify.Rate, values.FormatDuration(unending.Verify.LostAfter), values.FormatDuration(unending.Verify.Recheck), values.FormatDuration(unending.Verify.Keep)))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg := defaultVerify()
		if forever {
			foreverDefaults(&cfg.Verify)
		}
		if err := flags.LoadOver(cfg); err != nil {
			return err
		}
		if forever {
			cfg.Verify.Spans, cfg.Verify.Duration = 0, 0
		} else if cmd.Flags().Changed("duration") && !cmd.Flags().Changed("spans") {
			cfg.Verify.Spans = 0
		}
		return o.verify(cmd, cfg, forever)
	}
	cmd.AddCommand(verifyConfigured.Command(nil))
	return cmd
}

// foreverDefaults are those of --forever: copies and losses may come late in a cluster under
// repair.
func foreverDefaults(c *verify.Config) {
	c.Rate, c.LostAfter, c.Recheck, c.Keep = 10, 10*time.Minute, 2*time.Minute, 24*time.Hour
}

// graceOfOnce and graceForever are how long spans under way are looked up after a signal;
// Kubernetes waits thirty seconds.
const (
	graceOfOnce  = 2 * time.Minute
	graceForever = 20 * time.Second
)

func (o *options) verify(cmd *cobra.Command, cfg *verifyConfig, forever bool) error {
	log := cfg.Log.Logger(cmd.ErrOrStderr())
	db, err := clickhouse.Open(cfg.ClickHouse, log)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	sender, err := verify.NewSender(cfg.Verify, log)
	if err != nil {
		return err
	}
	defer func() { _ = sender.Close() }()
	opts := verify.Options{Sender: sender, Store: verify.NewStore(db, cfg.ClickHouse.Database), Logger: log}
	terminal := isTerminal(cmd.ErrOrStderr())
	if !forever {
		opts.Progress = progress(cmd.Context(), cmd.ErrOrStderr(), terminal)
	}
	verifier, err := verify.New(cfg.Verify, opts)
	if err != nil {
		return err
	}
	if forever {
		return verifyForever(cmd.Context(), cfg, verifier, db)
	}
	// A wrong address, password or database is known before the first span.
	if err := db.Ping(cmd.Context()); err != nil {
		if clickhouse.IsLoginRefused(err) {
			return fmt.Errorf("%w\nset ClickHouse's user with --clickhouse-user and the password in METAFLOW_CLICKHOUSE_PASSWORD", err)
		}
		return fmt.Errorf("%w\nset ClickHouse's address with --clickhouse", err)
	}
	if _, err := opts.Store.Lookup(cmd.Context(), []string{strings.Repeat("0", 32)}, time.Now(), time.Now()); err != nil {
		return fmt.Errorf("%w\nset the database of the tables with --database, and a user that may SELECT from it", err)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "sending %s to %s, and looking for them in ClickHouse at %s\n",
		plan(cfg.Verify), cfg.Verify.Endpoint, strings.Join(cfg.ClickHouse.Addresses, ", "))
	report := verifier.Run(cmd.Context(), graceOfOnce)
	if terminal {
		fmt.Fprint(cmd.ErrOrStderr(), "\r\x1b[K")
	}
	c := &call{Command: cmd, options: o}
	if err := c.print(&report, func() *table { return reportTable(&report) }); err != nil {
		return err
	}
	return verdict(&report)
}

// verifyForever serves metrics until ctx ends. It fails only if it cannot run at all.
func verifyForever(ctx context.Context, cfg *verifyConfig, verifier *verify.Verifier, db *clickhouse.DB) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(verify.NewCollector(verifier))
	server, err := opshttp.New(cfg.HTTP, opshttp.Options{Gatherer: registry, Checks: []opshttp.Check{{Name: "clickhouse", Func: db.Ping}}})
	if err != nil {
		return err
	}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	served := make(chan error, 1)
	running, failed := context.WithCancelCause(ctx)
	defer failed(nil)
	go func() {
		err := server.Run(serving)
		failed(err)
		served <- err
	}()
	report := verifier.Run(running, graceForever)
	stop()
	err = <-served
	if err == nil && (report.Lost+report.Twice+report.Damaged) > 0 {
		err = verdict(&report)
	}
	return err
}

// verdict is an error if anything was wrong.
func verdict(r *verify.Report) error {
	switch {
	case r.Right() && !r.Interrupted:
		return nil
	case r.Acknowledged == 0:
		return fmt.Errorf("no span was acknowledged: %s", r.Problem)
	case r.Lost+r.Twice+r.Damaged > 0:
		return fmt.Errorf("%d spans are lost, %d stored twice, %d damaged", r.Lost, r.Twice, r.Damaged)
	case r.Unverified > 0:
		return fmt.Errorf("%d spans could not be looked up: %s", r.Unverified, orUnknown(r.Problem))
	case r.Refused+r.Unanswered > 0:
		return fmt.Errorf("%d spans were refused and %d not answered: %s", r.Refused, r.Unanswered, r.Problem)
	case r.Late > 0:
		return fmt.Errorf("%d spans are late", r.Late)
	default:
		return fmt.Errorf("interrupted after %d spans", r.Sent)
	}
}

func orUnknown(problem string) string {
	if problem == "" {
		return "the run was interrupted"
	}
	return problem
}

func reportTable(r *verify.Report) *table {
	t := &table{}
	number := func(name string, n int64) { t.add(name, strconv.FormatInt(n, 10)) }
	t.add("run", r.Run)
	number("sent", r.Sent)
	number("acknowledged", r.Acknowledged)
	number("refused", r.Refused)
	number("unanswered", r.Unanswered)
	number("stored", r.Stored)
	number("lost", r.Lost)
	number("unverified", r.Unverified)
	number("twice", r.Twice)
	number("damaged", r.Damaged)
	number("late", r.Late)
	if r.Stored > 0 {
		t.add("visible after", fmt.Sprintf("p50 %s, p99 %s, max %s", short(r.Delay.P50), short(r.Delay.P99), short(r.Delay.Max)))
		for _, b := range r.Delay.Buckets {
			name := "  up to " + short(b.UpTo)
			if b.UpTo == 0 {
				name = "  later"
			}
			if b.Spans > 0 {
				number(name, b.Spans)
			}
		}
	}
	if r.Problem != "" {
		t.add("last error", r.Problem)
	}
	for _, example := range r.Examples {
		t.add("example", example)
	}
	return t
}

func short(d time.Duration) string { return d.Round(time.Millisecond).String() }

// plan says what is sent, and how long that takes at least.
func plan(c verify.Config) string {
	took := c.Duration
	spans := fmt.Sprintf("%g spans/s", c.Rate)
	if c.Spans > 0 {
		spans = fmt.Sprintf("%d spans at %g/s", c.Spans, c.Rate)
		if d := time.Duration(float64(c.Spans) / c.Rate * float64(time.Second)); took == 0 || d < took {
			took = d
		}
	}
	if took == 0 {
		return spans
	}
	return fmt.Sprintf("%s (%s, and %s more to find copies)", spans, max(took.Round(time.Second), time.Second), c.Recheck)
}

// linesEvery is the pause between lines of progress where they do not replace each other.
const linesEvery = 10 * time.Second

// progress returns a function that writes the state of a run, at most once a second: on a
// terminal in one line, elsewhere as a line every ten seconds. Once ctx has ended, it says
// what the run still waits for.
func progress(ctx context.Context, w io.Writer, terminal bool) func(verify.Report) {
	written, ended := time.Now(), false
	return func(r verify.Report) {
		if ctx.Err() != nil && !ended {
			ended = true
			if terminal {
				fmt.Fprint(w, "\r\x1b[K")
			}
			fmt.Fprintln(w, "interrupted: looking for the spans that were sent, and for copies; another Ctrl-C ends this at once")
		}
		if !terminal && time.Since(written) < linesEvery {
			return
		}
		written = time.Now()
		line := fmt.Sprintf("sent %d  acknowledged %d  stored %d  lost %d  twice %d", r.Sent, r.Acknowledged, r.Stored, r.Lost, r.Twice)
		if r.Problem != "" {
			line += fmt.Sprintf("  (%.60s)", r.Problem)
		}
		if terminal {
			fmt.Fprint(w, "\r\x1b[K", line)
		} else {
			fmt.Fprintln(w, line)
		}
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
