//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
)

// options are the command line.
type options struct {
	bin      string // directory of MetaFlow's programs
	programs string // directory of the real programs
	run      *regexp.Regexp
	json     string
	short    bool
	long     bool
	list     bool
	verbose  bool
	keep     string // directory for the programs' output
	dump     string
	report   string
}

func main() {
	if maybeEnter() {
		return
	}
	if err := start(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "netlab:", err)
		os.Exit(1)
	}
}

func start(args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if o.list {
		for _, c := range cases() {
			fmt.Printf("%-28s %s\n", c.name, c.story)
		}
		return nil
	}
	if missing := missing(o); len(missing) > 0 {
		return errors.New("cannot run: " + strings.Join(missing, "; "))
	}
	if os.Getenv(insideVariable) == "" {
		return enclose(args)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return inside(ctx, o)
}

func parse(args []string) (o options, err error) {
	var pattern string
	flags := flag.NewFlagSet("netlab", flag.ExitOnError)
	flags.StringVar(&o.bin, "bin", "bin", "`directory` of metaflow-server, metaflow-agent and metaflow-ctl")
	flags.StringVar(&o.programs, "programs", ".cache/netlab", "`directory` of the real programs")
	flags.StringVar(&pattern, "run", "", "run only the cases whose name matches this `regexp`")
	flags.StringVar(&o.json, "json", "", "also write the results to this `file`")
	flags.BoolVar(&o.short, "short", false, "a few seconds for each case, and only those of the short form unless -run names them")
	flags.BoolVar(&o.long, "long", false, "minutes for the cases about long times, such as 20,000 requests without trouble")
	flags.BoolVar(&o.list, "list", false, "list the cases and exit")
	flags.BoolVar(&o.verbose, "v", false, "show what the views said in each case")
	flags.StringVar(&o.keep, "keep", "", "write the output of all programs to this `directory`")
	flags.StringVar(&o.dump, "dump-interval", "1s", "inputs.flow.dump_interval of the agent")
	flags.StringVar(&o.report, "report-interval", "10s", "inputs.flow.report_interval of the agent")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	o.run, err = regexp.Compile(pattern)
	return o, err
}

// insideVariable tells the second process that it is in the new namespaces.
const insideVariable = "NETLAB_INSIDE"

// enclose runs this program again, as the first process of new namespaces. When
// it ends, the kernel ends everything in them.
func enclose(args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, args...) //nolint:gosec // this program
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, os.Stdout, os.Stderr
	separate(cmd)
	// The first process gets Ctrl-C too, and ends in order.
	signal.Ignore(os.Interrupt)
	err = cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	return err
}
