// Command service runs one service of the WebStore in a process of its own, so
// that each service can have its own network namespace, container or host.
//
//	service -service cartservice -listen 10.77.0.17:8080 -peers redis=10.77.0.10:8080 -endpoint 10.77.0.1:4317
//
// It runs until its standard input ends or it receives a signal. Each line of
// the input is a command, and each gets a line as the answer:
//
//	visit 20 6     (load generator) 20 visitors, 6 at once    20 visitors, 3 saw errors
//	slow 300ms     every handler takes this much longer       ok
//	fail 50        this percentage of the handlers fails      ok
//	attach 500000  (checkout) letters carry this many bytes   ok
//	well           ends all trouble                           ok
//
// It prints "ready" as soon as it serves.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/metaflowys/metaflow-server/deploy/demo/webstore"
)

const (
	// openLimit bounds the wait for the listen address to appear on the host.
	openLimit = 30 * time.Second
	// closeLimit bounds the export of the last spans.
	closeLimit = 10 * time.Second
)

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "service:", err)
		os.Exit(1)
	}
}

// parse parses the flags.
func parse(args []string, stderr io.Writer) (webstore.SingleOptions, error) {
	o := webstore.SingleOptions{Peers: map[string]string{}}
	flags := flag.NewFlagSet("service", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.Service, "service", "", "`name` of the service: "+strings.Join(webstore.Names(), ", "))
	flags.TextVar(&o.Listen, "listen", netip.AddrPort{}, "`ip:port` to serve at; calls come from its address")
	flags.StringVar(&o.Endpoint, "endpoint", "", "send the spans to the OTLP/gRPC receiver at `host:port`, or to an OTLP/HTTP URL")
	flags.Uint64Var(&o.Seed, "seed", 1, "seed of who buys what")
	flags.DurationVar(&o.IdleLimit, "idle", 0, "close connections without calls after this long")
	flags.Func("peers", "addresses of the services that it calls, `name=host:port,...`", func(text string) error {
		for one := range strings.SplitSeq(text, ",") {
			name, address, ok := strings.Cut(one, "=")
			if !ok {
				return fmt.Errorf("%q is not name=host:port", one)
			}
			o.Peers[name] = address
		}
		return nil
	})
	return o, flags.Parse(args)
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()

	opening, cancel := context.WithTimeout(ctx, openLimit)
	defer cancel()
	s, err := webstore.StartSingle(opening, o)
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, "ready")
	// A read of standard input cannot be interrupted; the process exits while
	// it blocks.
	ended := make(chan error, 1)
	go func() { ended <- serveCommands(ctx, s, stdin, stdout) }()
	select {
	case err = <-ended:
	case <-ctx.Done():
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
	defer cancel()
	return errors.Join(err, s.Close(closing))
}

// serveCommands runs commands until the input ends.
func serveCommands(ctx context.Context, s *webstore.Single, in io.Reader, out io.Writer) error {
	var trouble webstore.Trouble
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		answer, err := command(ctx, s, &trouble, strings.Fields(lines.Text()))
		if err != nil {
			answer = "error: " + err.Error()
		}
		fmt.Fprintln(out, answer)
	}
	return lines.Err()
}

func command(ctx context.Context, s *webstore.Single, trouble *webstore.Trouble, words []string) (answer string, err error) {
	switch name, args := word(words, 0), words[min(1, len(words)):]; name {
	case "visit":
		journeys, err1 := strconv.Atoi(word(args, 0))
		concurrency, err2 := strconv.Atoi(word(args, 1))
		if err := errors.Join(err1, err2); err != nil {
			return "", err
		}
		failed, err := s.Visit(ctx, journeys, concurrency)
		return fmt.Sprintf("%d visitors, %d saw errors", journeys, failed), err
	case "slow":
		trouble.Slow, err = time.ParseDuration(word(args, 0))
	case "fail":
		trouble.FailPercent, err = strconv.Atoi(word(args, 0))
	case "attach":
		trouble.Attachment, err = strconv.Atoi(word(args, 0))
	case "well":
		*trouble = webstore.Trouble{}
	default:
		err = fmt.Errorf("unknown command %q", name)
	}
	s.SetTrouble(*trouble)
	return "ok", err
}

func word(words []string, i int) string {
	if i < len(words) {
		return words[i]
	}
	return ""
}
