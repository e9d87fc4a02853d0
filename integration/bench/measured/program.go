package measured

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// listenTimeout bounds the time until a started program listens.
const listenTimeout = time.Minute

// Main parses the flags and runs a measurement until it returns or is
// interrupted. It prints an error to standard error and exits.
func Main(name string, run func(context.Context) error) {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, name+":", err)
		os.Exit(1)
	}
}

// Progress prints to standard error what the measurement is doing.
func Progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

// MaybeServe turns this process into a helper if StartServing started it with
// the variable: it serves at the variable's value until it is killed. Helpers
// are separate processes, so that the measurement does not count their cost.
// Call it first in main.
func MaybeServe(variable string, serve func(addr string) error) {
	addr, ok := os.LookupEnv(variable)
	if !ok {
		return
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", variable, serve(addr))
	os.Exit(1)
}

// StartServing runs this program again as a helper for MaybeServe. It returns
// the helper and its address once it listens.
func StartServing(ctx context.Context, verbose bool, variable string, env ...string) (*Process, string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	addr, err := FreeAddr()
	if err != nil {
		return nil, "", err
	}
	p, err := Start(verbose, append(env, variable+"="+addr), self)
	if err != nil {
		return nil, "", err
	}
	if err := p.WaitListening(ctx, addr); err != nil {
		p.Stop()
		return nil, "", err
	}
	return p, addr, nil
}
