package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
)

// runDemo runs the whole demo against a stand-in and returns its output.
func runDemo(t *testing.T, behaviour string) (stdout, stderr string, err error) {
	t.Helper()
	t.Setenv(standIn, behaviour)
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	out, err := os.Create(filepath.Join(t.TempDir(), "stdout"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	var trouble bytes.Buffer
	err = run(t.Context(), []string{"-server", os.Args[0], "-agent", "", "-journeys", "20", "-patience", "3s"}, out, &trouble)
	if left, _ := filepath.Glob(filepath.Join(tmp, "metaflow-demo-*")); len(left) > 0 {
		t.Errorf("the demo left %q behind", left)
	}
	text, readErr := os.ReadFile(out.Name())
	if readErr != nil {
		t.Fatal(readErr)
	}
	return string(text), trouble.String(), err
}

func TestDemo(t *testing.T) {
	stdout, stderr, err := runDemo(t, faultless)
	if err != nil {
		t.Fatalf("run = %v\n%s", err, stderr)
	}
	for _, want := range []string{
		"Every span is stored exactly once.",
		"FROM metaflow.spans",
		"└ POST /cart/checkout",
		"frontend              → checkoutservice       grpc  127.0.1.",
		"cartservice           → redis                 redis 127.0.1.",
		"make run",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("the answers lack %q", want)
		}
	}
	if strings.Contains(stdout, "\x1b") {
		t.Error("colours were written to a file")
	}
	for line := range strings.Lines(stdout) {
		if n := len([]rune(strings.TrimRight(line, "\n"))); n > 120 {
			t.Errorf("a line is %d characters wide: %s", n, line)
		}
	}
}

func TestDemoReportsFailures(t *testing.T) {
	tests := map[string][]string{
		loses:     {"acknowledged spans are stored, and nothing was added", "acknowledged, ", " stored"},
		doubles:   {"spans were lost or duplicated"},
		dies:      {"the server ended too early (exit status 1)", "stand-in: as the test wants"},
		diesLater: {"the server ended too early (exit status 1)", "the first spans were too much"},
		stubborn:  {"did not stop cleanly (exit status 1)", "would rather have stayed"},
	}
	for behaviour, wants := range tests {
		t.Run(behaviour, func(t *testing.T) {
			_, stderr, err := runDemo(t, behaviour)
			if err == nil {
				t.Fatalf("run succeeded\n%s", stderr)
			}
			for _, want := range wants {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("run = %v\nerror lacks %q", err, want)
				}
			}
		})
	}
}

func TestDemoStopsWhenInterrupted(t *testing.T) {
	t.Setenv(standIn, faultless)
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	o := options{server: os.Args[0], journeys: 1 << 30, patience: time.Minute}
	began := &trigger{text: "acknowledged", pull: interrupt}
	err := demo(ctx, o, &terminal{w: io.Discard, width: defaultWidth}, newProgress(began))
	if err == nil {
		t.Error("an interrupted demo succeeded")
	}
	if left, _ := filepath.Glob(filepath.Join(tmp, "metaflow-demo-*")); len(left) > 0 {
		t.Errorf("the demo left %q behind", left)
	}
}

// Where nothing listens, the demo says what it waits for and why, and then ends with its failure.
func TestVisitSaysWhatItWaitsFor(t *testing.T) {
	addr := ports.FreeAddress(t)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	var output bytes.Buffer
	want := "waiting for " + addr + " to acknowledge "
	waits := &trigger{text: "nothing listens on this address", pull: interrupt} // known once an export has failed
	_, err := visit(ctx, options{journeys: 1}, addr, newProgress(io.MultiWriter(&output, waits)))
	if err == nil || !strings.Contains(output.String(), want) || !strings.Contains(output.String(), "nothing listens on this address") {
		t.Errorf("visit = %v, and says\n%s", err, output.String())
	}
}

// trigger calls a function when a text is written.
type trigger struct {
	text string
	pull func()
}

func (tr *trigger) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(tr.text)) {
		tr.pull()
	}
	return len(p), nil
}

// hole acknowledges or rejects everything, and stores nothing.
type hole struct {
	coltracepb.UnimplementedTraceServiceServer
	err error
}

func (h hole) Export(context.Context, *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
	return &coltracepb.ExportTraceServiceResponse{}, h.err
}

func TestStoreAgainstRunningServer(t *testing.T) {
	tests := map[string]struct {
		err  error
		want string // part of the demo's error; empty for success
	}{
		"that takes everything": {nil, ""},
		"that refuses":          {status.Error(codes.InvalidArgument, "as the test wants"), "never acknowledged: export of "},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			server := grpc.NewServer()
			coltracepb.RegisterTraceServiceServer(server, hole{err: tc.err})
			served := make(chan error, 1)
			go func() { served <- server.Serve(l) }()
			err = run(t.Context(), []string{"-endpoint", l.Addr().String(), "-journeys", "3"}, os.Stdout, io.Discard)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("run = %v, want %q", err, tc.want)
			}
			server.Stop()
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
}

// A URL without a path is that of the whole receiver. What refuses every export is told
// once, in the words of the answer.
func TestStoreOverHTTP(t *testing.T) {
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-protobuf")
		if r.URL.Path != "/v1/traces" {
			answer, _ := proto.Marshal(status.New(codes.NotFound, "path "+r.URL.Path+" is not served").Proto())
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write(answer)
		}
	}))
	defer receiver.Close()
	for _, path := range []string{"", "/", "/v1/traces"} {
		if err := run(t.Context(), []string{"-endpoint", receiver.URL + path, "-journeys", "1"}, os.Stdout, io.Discard); err != nil {
			t.Errorf("%q: %v", path, err)
		}
	}
	var progress bytes.Buffer
	err := run(t.Context(), []string{"-endpoint", receiver.URL + "/v2", "-journeys", "3"}, os.Stdout, &progress)
	if err == nil || !strings.HasSuffix(err.Error(), ": the receiver answered 404 Not Found: path /v2 is not served") {
		t.Errorf("run = %v", err)
	}
	if got := strings.Count(progress.String(), "(body: path /v2 is not served)"); got != 1 || strings.Count(progress.String(), "] export: ") != 1 {
		t.Errorf("the failure is told %d times:\n%s", got, &progress)
	}
}

func TestRunRejectsBadFlags(t *testing.T) {
	tests := map[string]struct {
		args []string
		want string
	}{
		"no such server":  {[]string{"-server", "/does/not/exist"}, "run `make build`"},
		"no visitors":     {[]string{"-journeys", "0"}, "-journeys: 0 is not positive"},
		"an argument":     {[]string{"please"}, `unknown argument "please"`},
		"an unknown flag": {[]string{"-please"}, "flag provided but not defined"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Setenv("TMPDIR", t.TempDir())
			err := run(t.Context(), tc.args, os.Stdout, io.Discard)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("run(%q) = %v, want %q", tc.args, err, tc.want)
			}
		})
	}
}
