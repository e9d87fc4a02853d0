package rpc_test

import (
	"context"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
	"github.com/metaflowys/metaflow-server/pkg/tokens"
	"github.com/metaflowys/metaflow-server/schema"
)

func bearers(t *testing.T, values ...string) *tokens.Set {
	t.Helper()
	s, err := tokens.Open(nil, tokens.List{Key: "k", Values: values})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Clients send a bearer token as the collector's bearertokenauth extension does. Agents,
// which Auth has checked, need none.
func TestBearerTokens(t *testing.T) {
	for name, tc := range map[string]struct {
		auth  rpc.Auth
		pairs []string
		want  codes.Code
	}{
		"a token":                        {nil, []string{"authorization", "Bearer one"}, codes.OK},
		"the next token":                 {nil, []string{"authorization", "Bearer two"}, codes.OK},
		"none":                           {nil, nil, codes.Unauthenticated},
		"a wrong one":                    {nil, []string{"authorization", "Bearer three"}, codes.Unauthenticated},
		"a password":                     {nil, []string{"authorization", "Basic one"}, codes.Unauthenticated},
		"the name of an agent":           {nil, []string{schema.MetadataAgent, "a"}, codes.Unauthenticated},
		"an agent that was checked":      {members{}, []string{schema.MetadataAgent, "a"}, codes.OK},
		"a collector beside such agents": {members{}, nil, codes.Unauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			reg := prometheus.NewRegistry()
			consumer := accept
			if tc.want != codes.OK {
				consumer = refuseAll(t)
			}
			srv := start(t, testConfig(), consumer, rpc.Options{
				Auth: tc.auth, Bearer: bearers(t, "one", "two"), BearerKey: "gateway.bearer_tokens", Registerer: reg,
			})
			_, err := client(t, srv).Export(metadata.AppendToOutgoingContext(t.Context(), tc.pairs...), otlptest.Sized(100))
			if status.Code(err) != tc.want || err != nil && !strings.Contains(err.Error(), "gateway.bearer_tokens") {
				t.Errorf("Export = %v, want %s", err, tc.want)
			}
			want := 0.0
			if tc.want != codes.OK {
				want = 1
			}
			if got := prom.Value(t, reg, "metaflow_grpc_unauthorized_calls_total", codes.Unauthenticated.String()); got != want {
				t.Errorf("counted %v refusals, want %v", got, want)
			}
			if _, err := healthpb.NewHealthClient(dial(t, srv.Addr())).Check(context.Background(), &healthpb.HealthCheckRequest{}); err != nil {
				t.Errorf("a probe: %v", err)
			}
		})
	}
}
