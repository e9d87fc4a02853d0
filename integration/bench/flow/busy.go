package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/metaflowys/metaflow-server/integration/bench/measured"
	"github.com/metaflowys/metaflow-server/pkg/retry"
)

const (
	busyAddress = "127.0.0.1:8000"
	// settle is left out of the measurement after each change.
	settle = time.Second
)

// serveBusy runs an HTTP server and its clients, which only send requests. For
// each line of standard input it prints the number of answered requests.
func serveBusy(ctx context.Context, clients, fresh int) error {
	listener, err := net.Listen("tcp4", busyAddress)
	if err != nil {
		return err
	}
	answer := make([]byte, 1024)
	server := http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(answer) })}
	go func() { _ = server.Serve(listener) }()
	defer server.Close()
	ctx, stop := context.WithCancel(ctx)
	var answered atomic.Int64
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	failure := make(chan error, clients)
	for range clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := ask(fresh, &answered); err != nil {
					failure <- err
					return
				}
			}
		})
	}
	asked := make(chan error, 1)
	go func() {
		lines := bufio.NewScanner(os.Stdin)
		for lines.Scan() {
			fmt.Println(answered.Load())
		}
		asked <- lines.Err()
	}()
	select {
	case err = <-asked:
	case err = <-failure:
	case <-ctx.Done():
	}
	return err
}

// ask makes the given number of requests over one connection, with as little
// work as possible: the server and the kernel are to be the load.
func ask(requests int, answered *atomic.Int64) error {
	conn, err := net.Dial("tcp4", busyAddress)
	if err != nil {
		return err
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	for range requests {
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			return err
		}
		response, err := http.ReadResponse(in, nil)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
		if err != nil {
			return err
		}
		answered.Add(1)
	}
	return nil
}

// busyLoad is a process that runs serveBusy.
type busyLoad struct {
	pid int
	in  io.WriteCloser
	out *bufio.Scanner
}

// speed is the performance of a busy server in a window.
type speed struct {
	rate  float64 // requests answered per second
	cost  float64 // CPU seconds of the server and its clients per request
	watch float64 // CPU time of the capture, as a share of theirs
}

// answered returns the number of requests answered so far.
func (b *busyLoad) answered() (int64, error) {
	if _, err := io.WriteString(b.in, "\n"); err != nil {
		return 0, err
	}
	if !b.out.Scan() {
		return 0, io.ErrUnexpectedEOF
	}
	return strconv.ParseInt(b.out.Text(), 10, 64)
}

// speed measures a window after a settling time. capture is the PID of the
// capture, or 0.
func (b *busyLoad) speed(ctx context.Context, window time.Duration, capture int) (s speed, err error) {
	if err := retry.Sleep(ctx, settle); err != nil {
		return s, err
	}
	began := time.Now()
	before, used, watched, err := b.sample(capture)
	if err != nil {
		return s, err
	}
	if err := retry.Sleep(ctx, window); err != nil {
		return s, err
	}
	after, usedAfter, watchedAfter, err := b.sample(capture)
	requests, cpu := float64(after-before), (usedAfter - used).Seconds()
	return speed{rate: requests / time.Since(began).Seconds(), cost: cpu / requests, watch: (watchedAfter - watched).Seconds() / cpu}, err
}

// sample returns the requests answered, and the CPU time used by the server and
// by the capture, so far.
func (b *busyLoad) sample(capture int) (answered int64, used, watched time.Duration, err error) {
	usage, err := measured.UsageOf(b.pid)
	if err != nil {
		return 0, 0, 0, err
	}
	used = usage.CPU
	if capture != 0 {
		if usage, err = measured.UsageOf(capture); err != nil {
			return 0, 0, 0, err
		}
		watched = usage.CPU
	}
	answered, err = b.answered()
	return answered, used, watched, err
}

// compare prints how much throughput is left while the connections are
// captured.
func compare(ctx context.Context, clients, fresh, pairs int, window time.Duration) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	name, remove, err := makeNamespace(ctx)
	if err != nil {
		return err
	}
	defer remove()
	cmd := exec.Command("ip", "netns", "exec", name, self, "-busy", strconv.Itoa(clients), "-fresh", strconv.Itoa(fresh)) //nolint:gosec // this program
	cmd.Env = append(os.Environ(), roleVariable+"=busy")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() { _ = in.Close(); _ = cmd.Wait() }()
	load := &busyLoad{cmd.Process.Pid, in, bufio.NewScanner(out)}
	with := func() (speed, error) {
		p, err := measured.Start(false, []string{roleVariable + "=capture"}, self)
		if err != nil {
			return speed{}, err
		}
		defer p.Stop()
		return load.speed(ctx, window, p.Cmd.Process.Pid)
	}
	without := func() (speed, error) { return load.speed(ctx, window, 0) }
	var lost, cost, watch []float64
	for i := range pairs {
		var on, off speed
		first, second := with, without
		one, other := &on, &off
		if rand.IntN(2) == 0 { //nolint:gosec // not a secret
			first, second, one, other = without, with, &off, &on
		}
		if *one, err = first(); err != nil {
			return err
		}
		if *other, err = second(); err != nil {
			return err
		}
		lost = append(lost, 100*(1-on.rate/off.rate))
		cost = append(cost, 100*(on.cost/off.cost-1))
		watch = append(watch, 100*on.watch)
		fmt.Fprintf(os.Stderr, "pair %d of %d: %.0f requests/s with, %.0f without; %.2f and %.2f us CPU a request\n",
			i+1, pairs, on.rate, off.rate, 1e6*on.cost, 1e6*off.cost)
	}
	fmt.Printf("%d clients, a new connection every %d requests, %d pairs (95%% confidence)\n", clients, fresh, pairs)
	median, low, high := estimate(lost)
	fmt.Printf("  throughput lost       %.2f%% (%.2f to %.2f)\n", median, low, high)
	// Other work on the machine affects the throughput, but hardly these: the
	// kernel's work for the capture on the server's account, and the capture's
	// own work.
	median, low, high = estimate(cost)
	fmt.Printf("  more CPU a request    %.2f%% (%.2f to %.2f)\n", median, low, high)
	median, low, high = estimate(watch)
	fmt.Printf("  CPU of the capture    %.2f%% of the server's (%.2f to %.2f)\n", median, low, high)
	return nil
}

// estimate returns the median of independent values and its confidence interval
// of about 95 percent: the ranks that contain the median by the sign test
// (binomial distribution, normal approximation). A mean would follow the
// outliers that other work on the machine causes.
func estimate(values []float64) (median, low, high float64) {
	slices.Sort(values)
	n := len(values)
	half := 0.98 * math.Sqrt(float64(n)) // 1.96 standard deviations of sqrt(n)/2
	at := func(rank float64) float64 { return values[min(max(int(rank), 0), n-1)] }
	return (at(float64(n-1)/2) + at(float64(n)/2)) / 2, at(math.Floor(float64(n)/2 - half)), at(math.Ceil(float64(n)/2 + half))
}
