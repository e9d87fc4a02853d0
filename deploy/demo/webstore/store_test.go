package webstore

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	clientKind   = tracepb.Span_SPAN_KIND_CLIENT
	serverKind   = tracepb.Span_SPAN_KIND_SERVER
	internalKind = tracepb.Span_SPAN_KIND_INTERNAL
)

// visitStore runs a store to its end and returns its report and the spans it
// sent.
func visitStore(t *testing.T, journeys int) (Report, []*span) {
	t.Helper()
	r := newReceiver(t)
	s, err := Start(t.Context(), Options{Endpoint: r.endpoint, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context(), journeys); err != nil {
		t.Error(err)
	}
	closeStore(t, s)
	return s.Report(), r.all()
}

// closeStore expects no error: export failures are in the report.
func closeStore(t *testing.T, s *Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
}

// TestStore checks everything that the demo promises on the spans of a few
// visitors, in one run because starting the shop takes the time.
func TestStore(t *testing.T) {
	const journeys = 60
	report, spans := visitStore(t, journeys)
	byID := map[string]*span{}
	for _, s := range spans {
		byID[string(s.GetSpanId())] = s
	}

	t.Run("every span that ended was sent once and acknowledged", func(t *testing.T) {
		want := Counts{Ended: int64(len(spans)), Acknowledged: int64(len(spans))}
		if diff := cmp.Diff(want, report.Total); diff != "" {
			t.Errorf("counts (-received +reported):\n%s", diff)
		}
		if len(byID) != len(spans) {
			t.Errorf("%d spans have %d ids", len(spans), len(byID))
		}
		received := map[string]int64{}
		for _, s := range spans {
			received[s.service]++
		}
		for name, c := range report.Services {
			if c.Acknowledged != received[name] {
				t.Errorf("%s reports %d spans, received %d", name, c.Acknowledged, received[name])
			}
		}
		if report.LastError != nil {
			t.Errorf("last error: %v", report.LastError)
		}
	})

	t.Run("calls match the graph", func(t *testing.T) {
		got := map[Edge]bool{}
		for _, s := range spans {
			if s.GetKind() == serverKind {
				got[edgeTo(t, s, byID)] = true
			}
			if s.GetKind() == clientKind && s.attribute("db.system") == "redis" {
				got[Edge{s.service, cache, redisProtocol}] = true
			}
		}
		want := map[Edge]bool{}
		for _, e := range Graph() {
			want[e] = true
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("edges (-document +spans):\n%s", diff)
		}
	})

	t.Run("every call except to the cache has both spans", func(t *testing.T) {
		served := map[string]bool{}
		for _, s := range spans {
			if s.GetKind() == serverKind {
				served[string(s.GetParentSpanId())] = true
			}
		}
		for _, s := range spans {
			if s.GetKind() == clientKind && s.attribute("db.system") == "" && !served[string(s.GetSpanId())] {
				t.Errorf("no server span for the call of %s to %s", s.service, s.GetName())
			}
		}
	})

	t.Run("a journey is one trace with one root", func(t *testing.T) {
		traces, roots := map[string]bool{}, 0
		for _, s := range spans {
			traces[string(s.GetTraceId())] = true
			parent := byID[string(s.GetParentSpanId())]
			switch {
			case len(s.GetParentSpanId()) == 0:
				roots++
				if s.service != loadGenerator || s.GetKind() != internalKind {
					t.Errorf("%s of %s has no parent", s.GetName(), s.service)
				}
			case parent == nil:
				t.Errorf("%s of %s has a parent that was not sent", s.GetName(), s.service)
			case string(parent.GetTraceId()) != string(s.GetTraceId()):
				t.Errorf("%s of %s is not of its parent's trace", s.GetName(), s.service)
			}
		}
		if len(traces) != journeys || roots != journeys || report.Journeys != journeys {
			t.Errorf("%d traces, %d roots, %d journeys, want %d of each", len(traces), roots, report.Journeys, journeys)
		}
	})

	t.Run("refused cards are errors with their cause", func(t *testing.T) {
		failed := int64(0)
		for _, s := range spans {
			if s.service != paymentService || s.GetStatus().GetCode() != tracepb.Status_STATUS_CODE_ERROR {
				continue
			}
			failed++
			if !strings.HasPrefix(s.GetStatus().GetMessage(), "card expired") {
				t.Errorf("message %q lacks the cause", s.GetStatus().GetMessage())
			}
			if !slices.ContainsFunc(s.GetEvents(), func(e *tracepb.Span_Event) bool { return e.GetName() == "exception" }) {
				t.Error("the failed charge has no exception event")
			}
		}
		if failed == 0 || failed != report.Declined {
			t.Errorf("%d charges failed, %d journeys were declined; want as many, and some", failed, report.Declined)
		}
		if report.Orders == 0 {
			t.Error("no visitor bought anything")
		}
	})

	t.Run("addresses match the sockets", func(t *testing.T) {
		checkAddresses(t, spans, byID)
	})

	t.Run("resources differ", func(t *testing.T) {
		for _, key := range []string{"service.name", "service.instance.id", "k8s.pod.name", "k8s.pod.uid", "k8s.deployment.name"} {
			values := map[string]bool{}
			for _, s := range spans {
				values[s.resource[key]] = true
			}
			if len(values) != len(catalogue) || values[""] {
				t.Errorf("%s has %d values, want %d", key, len(values), len(catalogue))
			}
		}
	})
}

// edgeTo returns the edge of the call that a server span answered.
func edgeTo(t *testing.T, s *span, byID map[string]*span) Edge {
	t.Helper()
	caller := byID[string(s.GetParentSpanId())]
	if caller == nil || caller.GetKind() != clientKind {
		t.Fatalf("%s of %s is not below a client span", s.GetName(), s.service)
	}
	protocol := grpcProtocol
	if s.attribute("http.request.method") != "" {
		protocol = httpProtocol
	}
	return Edge{caller.service, s.service, protocol}
}

func checkAddresses(t *testing.T, spans []*span, byID map[string]*span) {
	t.Helper()
	for _, s := range spans {
		if s.GetKind() == clientKind && s.attribute("network.peer.address") == "" {
			t.Errorf("client span %s of %s has no peer", s.GetName(), s.service)
		}
		if s.GetKind() != serverKind {
			continue
		}
		caller := byID[string(s.GetParentSpanId())]
		if got, want := s.attribute("network.peer.address"), caller.resource["k8s.pod.ip"]; got != want {
			t.Errorf("%s of %s was called from %q, want %q of %s", s.GetName(), s.service, got, want, caller.service)
		}
		if got, want := caller.attribute("network.peer.address"), s.resource["k8s.pod.ip"]; got != want {
			t.Errorf("%s called %q for %s, want %q", caller.service, got, s.service, want)
		}
		if got, want := caller.attribute("network.peer.port"), s.attribute("server.port"); got != want {
			t.Errorf("%s called port %s of %s, which serves on %s", caller.service, got, s.service, want)
		}
	}
}

func TestStoreCountsRefusals(t *testing.T) {
	tests := map[string]struct {
		answer func(request int, spans int64) (int64, error)
		want   func(ended int64) Counts
	}{
		"a partial success is not acknowledged in full": {
			func(int, int64) (int64, error) { return 1, nil },
			nil,
		},
		"rejected spans are missing": {
			func(int, int64) (int64, error) { return 0, status.Error(codes.InvalidArgument, "as the test wants") },
			func(ended int64) Counts { return Counts{Ended: ended} },
		},
		"spans accepted at the second attempt count once": {
			func(request int, _ int64) (int64, error) {
				if request == 1 {
					return 0, status.Error(codes.Unavailable, "as the test wants")
				}
				return 0, nil
			},
			func(ended int64) Counts { return Counts{Ended: ended, Acknowledged: ended} },
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := newReceiver(t)
			r.answer = tc.answer
			s, err := Start(t.Context(), Options{Endpoint: r.endpoint, Concurrency: 1})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Run(t.Context(), 2); err != nil {
				t.Error(err)
			}
			closeStore(t, s)
			got := s.Report()
			want := Counts{Ended: got.Total.Ended, Rejected: int64(r.requests), Acknowledged: got.Total.Ended - int64(r.requests)}
			if tc.want != nil {
				want = tc.want(got.Total.Ended)
			}
			if diff := cmp.Diff(want, got.Total); diff != "" || got.Total.Ended == 0 {
				t.Errorf("counts (-want +got):\n%s", diff)
			}
			if got.LastError == nil {
				t.Error("the report lacks the error")
			}
		})
	}
}

func TestStoreStopsWhenAsked(t *testing.T) {
	r := newReceiver(t)
	s, err := Start(t.Context(), Options{Endpoint: r.endpoint})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r.answer = func(int, int64) (int64, error) { cancel(); return 0, nil }
	if err := s.Run(ctx, 1<<30); !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v, want context.Canceled", err)
	}
	closeStore(t, s)
	if c := s.Report().Total; c.Missing() != 0 {
		t.Errorf("%d of %d spans are missing after an early stop", c.Missing(), c.Ended)
	}
}

// A dead receiver does not hold up the store's end.
func TestCloseGivesUp(t *testing.T) {
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0") // accepts connections and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	s, err := Start(t.Context(), Options{Endpoint: l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context(), 3); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Close = %v, want context.Canceled", err)
	}
	if c := s.Report().Total; c.Missing() != c.Ended || c.Ended == 0 {
		t.Errorf("%d of %d spans are missing, want all", c.Missing(), c.Ended)
	}
}

func TestStartNeedsAnEndpoint(t *testing.T) {
	if _, err := Start(t.Context(), Options{}); err == nil {
		t.Error("Start without an endpoint succeeded")
	}
}

func TestEqualSeedsMakeEqualVisitors(t *testing.T) {
	a, b, other := newVisit(nil, 1, 7), newVisit(nil, 1, 7), newVisit(nil, 2, 7)
	same := cmpopts.IgnoreFields(visit{}, "s", "rng")
	if diff := cmp.Diff(*a, *b, cmp.AllowUnexported(visit{}), same); diff != "" {
		t.Errorf("visitors of one seed differ:\n%s", diff)
	}
	if a.rng.Uint64() != b.rng.Uint64() {
		t.Error("visitors of one seed go different ways")
	}
	if cmp.Equal(*a, *other, cmp.AllowUnexported(visit{}), same) {
		t.Error("visitors of two seeds are equal")
	}
}

func TestCheckCard(t *testing.T) {
	now := time.Date(2026, time.June, 15, 0, 0, 0, 0, time.UTC)
	tests := map[string]struct {
		card creditCard
		ok   bool
	}{
		"valid for years":            {creditCard{"4111111111111111", 2099, time.December}, true},
		"valid to the end of June":   {creditCard{"5555555555554444", 2026, time.June}, true},
		"expired at the end of May":  {creditCard{"5555555555554444", 2026, time.May}, false},
		"last digit is wrong":        {creditCard{"4111111111111112", 2099, time.December}, false},
		"no number":                  {creditCard{"", 2099, time.December}, false},
		"letters":                    {creditCard{"41x1111111111111", 2099, time.December}, false},
		"valid to the end of a year": {creditCard{"4111111111111111", 2026, time.December}, true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if err := tc.card.check(now); (err == nil) != tc.ok {
				t.Errorf("check = %v, want ok %t", err, tc.ok)
			}
		})
	}
}
