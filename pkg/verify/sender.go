package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/rpc/callerror"
)

// request is one export of whole traces. It is sent until it is answered, always with the
// same bytes.
type request struct {
	traces []sentTrace
	body   []byte // an ExportTraceServiceRequest
}

type sentTrace struct {
	number uint64
	start  time.Time
	spans  int
}

func (m *maker) request(first uint64, start time.Time, spans int) (*request, error) {
	scope := &tracepb.ScopeSpans{}
	r := &request{}
	for number := first; spans > 0; number++ {
		n := min(spans, spansOfTrace)
		made := m.spans(number, start, n)
		for i := range made {
			scope.Spans = append(scope.Spans, made[i].message())
		}
		r.traces = append(r.traces, sentTrace{number: number, start: start, spans: n})
		spans -= n
	}
	var err error
	r.body, err = proto.Marshal(&coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{
		{Resource: m.resource(), ScopeSpans: []*tracepb.ScopeSpans{scope}},
	}})
	return r, err
}

// Sender sends a request once. The error is nil if everything was acknowledged. An error
// that is no *Failure means that nobody answered.
type Sender interface {
	Send(ctx context.Context, body []byte) error
	Close() error
}

// Failure is the answer to a request that was not acknowledged.
type Failure struct {
	error
	// Retry: OTLP asks to send the same request again, after Pause if that is not 0.
	Retry bool
	Pause time.Duration
}

// Unwrap returns the answer as an error.
func (f *Failure) Unwrap() error { return f.error }

// maxAnswer bounds what is read of an answer; a partial success or a status is smaller.
const maxAnswer = 64 << 10

// sendTimeout is how long one attempt may take: as long as the collector waits by default.
const sendTimeout = 30 * time.Second

// NewSender returns a Sender for cfg.Endpoint. It does not connect.
func NewSender(cfg Config, log *slog.Logger) (Sender, error) {
	e, err := parseEndpoint(cfg.Endpoint)
	if err != nil {
		return nil, err
	}
	tls := cfg.TLS
	tls.Enabled = tls.Enabled || e.tls
	source, err := tls.Source("verify.tls", log)
	if err != nil {
		return nil, err
	}
	bearer := token{file: cfg.TokenFile}
	if e.grpc {
		credential := insecure.NewCredentials()
		if e.tls {
			credential = credentials.NewTLS(source.Config())
		}
		conn, err := grpc.NewClient(e.host, grpc.WithTransportCredentials(credential))
		if err != nil {
			return nil, fmt.Errorf("endpoint: %w", err)
		}
		return &grpcSender{conn: conn, token: bearer}, nil
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil // an agent is reached directly
	if e.tls {
		transport.TLSClientConfig = source.Config()
	}
	return &httpSender{client: &http.Client{Transport: transport}, transport: transport, url: e.url, token: bearer}, nil
}

// token reads a bearer token for each request, so that a rotated one is used at once.
type token struct{ file string }

// value returns "" without a file.
func (t token) value() (string, error) {
	if t.file == "" {
		return "", nil
	}
	b, err := os.ReadFile(t.file)
	if err != nil {
		return "", fmt.Errorf("read verify.token_file: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

type httpSender struct {
	client    *http.Client
	transport *http.Transport
	url       string
	token     token
}

func (s *httpSender) Close() error {
	s.transport.CloseIdleConnections()
	return nil
}

// Send follows OTLP/HTTP's rules for failures.
// https://opentelemetry.io/docs/specs/otlp/#failures-1
func (s *httpSender) Send(ctx context.Context, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	bearer, err := s.token.value()
	if err != nil {
		return err
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return wrongProtocol(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusOK {
		var export coltracepb.ExportTraceServiceResponse
		if err := proto.Unmarshal(answer, &export); err != nil {
			return fmt.Errorf("%s answers 200 with no OTLP response: %w", s.url, err)
		}
		return partial(&export)
	}
	f := &Failure{error: fmt.Errorf("%s answers %s%s", s.url, resp.Status, reason(answer))}
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		f.Retry, f.Pause = true, retryAfter(resp.Header)
	}
	return f
}

// reason returns the message of the google.rpc.Status in an answer, if there is one.
func reason(answer []byte) string {
	var st spb.Status
	if err := proto.Unmarshal(answer, &st); err != nil || st.GetMessage() == "" {
		return ""
	}
	return ": " + st.GetMessage()
}

func retryAfter(h http.Header) time.Duration {
	seconds, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return min(time.Duration(seconds)*time.Second, time.Hour)
}

type grpcSender struct {
	conn  *grpc.ClientConn
	token token
}

func (s *grpcSender) Close() error { return s.conn.Close() }

// Send follows OTLP/gRPC's rules for failures.
// https://opentelemetry.io/docs/specs/otlp/#failures
func (s *grpcSender) Send(ctx context.Context, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	bearer, err := s.token.value()
	if err != nil {
		return err
	}
	if bearer != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+bearer)
	}
	var req coltracepb.ExportTraceServiceRequest
	if err := proto.Unmarshal(body, &req); err != nil {
		return err
	}
	answer, err := coltracepb.NewTraceServiceClient(s.conn).Export(ctx, &req)
	if err == nil {
		return partial(answer)
	}
	st := status.Convert(err)
	if err := wrongProtocol(errors.New(st.Message())); final(err) {
		return err
	}
	f := &Failure{error: fmt.Errorf("%s: %s", s.conn.Target(), callerror.Text(err))}
	for _, detail := range st.Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			f.Retry, f.Pause = true, min(info.GetRetryDelay().AsDuration(), time.Hour)
		}
	}
	retryable := []codes.Code{codes.Canceled, codes.DeadlineExceeded, codes.Aborted, codes.OutOfRange, codes.Unavailable, codes.DataLoss}
	f.Retry = f.Retry || slices.Contains(retryable, st.Code())
	return f
}

// wrongProtocol returns a final Failure if the endpoint speaks another protocol than its
// scheme says, and otherwise err.
func wrongProtocol(err error) error {
	text := err.Error()
	for _, m := range []struct{ sign, hint string }{
		{`malformed HTTP response "\x00\x00`, "this port speaks gRPC: write the endpoint as grpc://HOST:PORT, usually port 20035"},
		{"looked like an HTTP/1.1 header", "this port speaks HTTP, not gRPC: write the endpoint as http://HOST:PORT, usually port 4318 or an agent's 38086"},
		{"server gave HTTP response to HTTPS client", "this port has no TLS: write the endpoint as http://HOST:PORT"},
		{"first record does not look like a TLS handshake", "this port has no TLS: write the endpoint as grpc://HOST:PORT"},
	} {
		if strings.Contains(text, m.sign) {
			return &Failure{error: fmt.Errorf("%s (%w)", m.hint, err)}
		}
	}
	return err
}

// partial returns a Failure if an answer rejects spans.
func partial(answer *coltracepb.ExportTraceServiceResponse) error {
	if p := answer.GetPartialSuccess(); p.GetRejectedSpans() > 0 {
		return &Failure{error: fmt.Errorf("%d spans rejected: %s", p.GetRejectedSpans(), p.GetErrorMessage())}
	}
	return nil
}

// final reports whether err is an answer that another attempt cannot change.
func final(err error) bool {
	var f *Failure
	return errors.As(err, &f) && !f.Retry
}

// pause returns how long the receiver asked to wait, or 0.
func pause(err error) time.Duration {
	var f *Failure
	if errors.As(err, &f) {
		return f.Pause
	}
	return 0
}
