package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
)

func main() {
	chengine.MaybeRunChild()
	maybeServeBroker()
	o := options{items: 500, collectors: 4}
	var only, programs string
	flag.IntVar(&o.faults, "faults", 200, "how many faults")
	flag.IntVar(&o.together, "together", 10, "at most so many faults at the same time")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().Unix()), "which faults, and in what order")
	flag.StringVar(&o.engine, "engine", "apache", "apache or embedded")
	flag.Float64Var(&o.rate, "rate", 6000, "spans a second, while nothing holds them up")
	flag.DurationVar(&o.settle, "settle", 3*time.Minute, "longest time until all is settled after faults; docs/guarantees.md promises 30s on an idle machine")
	flag.StringVar(&only, "kinds", "", "only these kinds of faults, separated by commas")
	flag.StringVar(&o.oldCommit, "from", "4a10f92", "commit whose programs are upgraded in the run; empty upgrades nothing")
	flag.BoolVar(&o.clocks, "clocks", true, "set clocks, for which the programs are built with another time.Now")
	flag.StringVar(&programs, "programs", "", "directory for the programs: one that an earlier run has filled is used as it is; empty builds them anew")
	flag.StringVar(&o.dir, "dir", "", "where logs and data are; a directory for temporary files if empty")
	flag.BoolVar(&o.verbose, "v", false, "show what happens")
	flag.Parse()
	o.overlay = o.clocks
	if only != "" {
		o.only = strings.Split(only, ",")
	}
	// The first signal ends the schedule, and what was done is judged; the second one ends all.
	stop, release := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(stop, release)
	ok, err := run(context.Background(), stop.Done(), o, programs)
	release()
	if err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

// run builds the programs, does the run and prints its table. It reports whether all
// guarantees held.
func run(ctx context.Context, stop <-chan struct{}, o options, programs string) (ok bool, err error) {
	root, err := findRoot()
	if err != nil {
		return false, err
	}
	if o.jars, err = findKafka(root); err != nil && o.engine == "apache" {
		return false, err
	}
	if o.mounts = mayMount(); !o.mounts {
		fmt.Fprintln(os.Stderr, "faults: full disks are left out: they need the permission to mount")
	}
	if o.clocks && newClocks("").library == "" {
		fmt.Fprintln(os.Stderr, "faults: the clock of ClickHouse is left alone: libfaketime is not installed")
	}
	if programs == "" {
		if programs, err = os.MkdirTemp("", "metaflow-faults-bin-"); err != nil {
			return false, err
		}
		defer func() { _ = os.RemoveAll(programs) }()
	}
	if err := o.prepare(root, programs); err != nil {
		return false, err
	}
	r, err := runFaults(ctx, stop, o)
	if r != nil {
		r.print(os.Stdout)
	}
	return r != nil && len(r.violations) == 0, err
}

// findKafka returns where the jars of Apache Kafka are.
func findKafka(root string) (string, error) {
	if _, err := exec.LookPath("java"); err != nil {
		return "", err
	}
	jars := filepath.Join(root, ".cache", "kafka")
	if _, err := os.Stat(jars); err != nil {
		return "", fmt.Errorf("there is no Apache Kafka: make kafka fetches it: %w", err)
	}
	return jars, nil
}
