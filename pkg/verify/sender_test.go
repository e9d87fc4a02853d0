package verify

import (
	"context"
	"errors"
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
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// verdictOf is what a caller learns from the error of Send.
type verdictOf struct {
	ok, final bool
	pause     time.Duration
}

func judge(err error) verdictOf { return verdictOf{err == nil, final(err), pause(err)} }

func TestHTTPAnswers(t *testing.T) {
	partialAnswer, err := proto.Marshal(&coltracepb.ExportTraceServiceResponse{PartialSuccess: &coltracepb.ExportTracePartialSuccess{RejectedSpans: 2, ErrorMessage: "bad"}})
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		status int
		header http.Header
		body   []byte
		want   verdictOf
	}{
		"accepted":            {http.StatusOK, nil, nil, verdictOf{ok: true}},
		"rejected in part":    {http.StatusOK, nil, partialAnswer, verdictOf{final: true}},
		"another server":      {http.StatusOK, nil, []byte("<html>"), verdictOf{}},
		"refused":             {http.StatusBadRequest, nil, nil, verdictOf{final: true}},
		"not found":           {http.StatusNotFound, nil, nil, verdictOf{final: true}},
		"overloaded":          {http.StatusServiceUnavailable, nil, nil, verdictOf{}},
		"asked to wait":       {http.StatusTooManyRequests, http.Header{"Retry-After": {"3"}}, nil, verdictOf{pause: 3 * time.Second}},
		"nonsense for a time": {http.StatusServiceUnavailable, http.Header{"Retry-After": {"soon"}}, nil, verdictOf{}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			token := filepath.Join(t.TempDir(), "token")
			if err := os.WriteFile(token, []byte("secret\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err != nil || r.URL.Path != "/v1/traces" || string(body) != "body" || r.Header.Get("Authorization") != "Bearer secret" {
					t.Errorf("%s %q %v %v", r.URL, body, r.Header, err)
				}
				for key, values := range test.header {
					w.Header()[key] = values
				}
				w.WriteHeader(test.status)
				_, _ = w.Write(test.body)
			}))
			defer server.Close()
			cfg := DefaultConfig()
			cfg.Endpoint, cfg.TokenFile = server.URL, token
			s, err := NewSender(cfg, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			err = s.Send(t.Context(), []byte("body"))
			if got := judge(err); got != test.want {
				t.Errorf("got %+v (%v), want %+v", got, err, test.want)
			}
		})
	}
}

type traceService struct {
	coltracepb.UnimplementedTraceServiceServer
	answer func(context.Context) (*coltracepb.ExportTraceServiceResponse, error)
}

func (s *traceService) Export(ctx context.Context, _ *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
	return s.answer(ctx)
}

func TestGRPCAnswers(t *testing.T) {
	asked, err := status.New(codes.ResourceExhausted, "full").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(2 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		err  error
		want verdictOf
	}{
		"accepted":                      {nil, verdictOf{ok: true}},
		"refused":                       {status.Error(codes.InvalidArgument, "bad"), verdictOf{final: true}},
		"unauthenticated":               {status.Error(codes.Unauthenticated, "who"), verdictOf{final: true}},
		"overloaded":                    {status.Error(codes.Unavailable, "full"), verdictOf{}},
		"asked to wait":                 {asked.Err(), verdictOf{pause: 2 * time.Second}},
		"exhausted for good, says OTLP": {status.Error(codes.ResourceExhausted, "too large"), verdictOf{final: true}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			server := grpc.NewServer()
			coltracepb.RegisterTraceServiceServer(server, &traceService{answer: func(context.Context) (*coltracepb.ExportTraceServiceResponse, error) {
				return &coltracepb.ExportTraceServiceResponse{}, test.err
			}})
			done := make(chan struct{})
			go func() { _ = server.Serve(listener); close(done) }()
			defer func() {
				server.Stop()
				<-done
			}()
			cfg := DefaultConfig()
			cfg.Endpoint = "grpc://" + listener.Addr().String()
			s, err := NewSender(cfg, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			err = s.Send(t.Context(), nil)
			if got := judge(err); got != test.want {
				t.Errorf("got %+v (%v), want %+v", got, err, test.want)
			}
		})
	}
}

func TestGRPCSendsTheToken(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	var got []string
	coltracepb.RegisterTraceServiceServer(server, &traceService{answer: func(ctx context.Context) (*coltracepb.ExportTraceServiceResponse, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		got = md.Get("authorization")
		return &coltracepb.ExportTraceServiceResponse{}, nil
	}})
	done := make(chan struct{})
	go func() { _ = server.Serve(listener); close(done) }()
	cfg := DefaultConfig()
	cfg.Endpoint, cfg.TokenFile = "grpc://"+listener.Addr().String(), token
	s, err := NewSender(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Send(t.Context(), nil)
	_ = s.Close()
	server.Stop()
	<-done
	if err != nil || len(got) != 1 || got[0] != "Bearer secret" {
		t.Errorf("the server received %q, %v", got, err)
	}
}

func TestNobodyAnswers(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Endpoint = "http://127.0.0.1:1"
	s, err := NewSender(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	err = s.Send(t.Context(), nil)
	var f *Failure
	if err == nil || errors.As(err, &f) {
		t.Errorf("got %v, want an error that is no answer", err)
	}
}

func TestEndpoints(t *testing.T) {
	for text, want := range map[string]endpoint{
		"http://node":                       {host: "node:38086", url: "http://node:38086/v1/traces"},
		"https://node:4318/v1/traces":       {tls: true, host: "node:4318", url: "https://node:4318/v1/traces"},
		"http://[::1]:38086/api/v1/otel/":   {host: "[::1]:38086", url: "http://[::1]:38086/api/v1/otel/v1/traces"},
		"grpc://metaflow-server":            {grpc: true, host: "metaflow-server:20035", url: "grpc://metaflow-server:20035/v1/traces"},
		"grpcs://metaflow-server.x.y:20036": {grpc: true, tls: true, host: "metaflow-server.x.y:20036", url: "grpcs://metaflow-server.x.y:20036/v1/traces"},
	} {
		if got, err := parseEndpoint(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "node:38086", "udp://node", "grpc://node/path", "http://user:secret@node", "http://node?x=y", "http://"} {
		if e, err := parseEndpoint(text); err == nil {
			t.Errorf("%q is accepted as %+v", text, e)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("the error shows a password: %v", err)
		}
	}
}

func TestValidateReportsEveryProblem(t *testing.T) {
	c := Config{Endpoint: "x", Spans: -1, Rate: -1, Batch: 0, Late: 0, LostAfter: 0, Recheck: -1, Poll: 0, Keep: -1, Duration: -1}
	err := c.Validate()
	if err == nil {
		t.Fatal("no problem found")
	}
	for _, key := range []string{"endpoint", "spans", "rate", "batch", "late", "lost_after", "recheck", "poll", "keep", "duration"} {
		if !strings.Contains(err.Error(), key+":") {
			t.Errorf("no problem with %s in %v", key, err)
		}
	}
	c = DefaultConfig()
	c.Rate, c.LostAfter = 100_000, time.Hour
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "to remember") {
		t.Errorf("a rate that needs too much memory: %v", err)
	}
}

// A scheme that does not fit the port is named at once, with the one that does.
func TestWrongProtocolIsNamed(t *testing.T) {
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	rpc := grpc.NewServer()
	done := make(chan struct{})
	go func() { defer close(done); _ = rpc.Serve(listener) }()
	defer func() { rpc.Stop(); <-done }()
	webAddr, rpcAddr := strings.TrimPrefix(web.URL, "http://"), listener.Addr().String()
	for endpoint, want := range map[string]string{
		"http://" + rpcAddr:  "write the endpoint as grpc://HOST:PORT",
		"grpc://" + webAddr:  "write the endpoint as http://HOST:PORT",
		"https://" + webAddr: "this port has no TLS",
		"grpcs://" + webAddr: "this port has no TLS",
	} {
		cfg := DefaultConfig()
		cfg.Endpoint = endpoint
		s, err := NewSender(cfg, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(t.Context(), nil); err == nil || !final(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want a final error with %q", endpoint, err, want)
		}
		s.Close()
	}
}
