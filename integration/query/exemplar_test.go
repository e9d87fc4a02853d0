package query

import (
	"fmt"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.yaml.in/yaml/v3"

	"github.com/metaflowys/metaflow-server/integration/internal/otelcol"
	"github.com/metaflowys/metaflow-server/integration/internal/shop"
	"github.com/metaflowys/metaflow-server/pkg/query"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// An application's histogram has exemplars, as SDKs of OpenTelemetry label them
// (https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/#exemplars).
// A real Prometheus keeps them, and the data sources in deploy/grafana lead from one to the
// trace in Tempo's API.
func TestExemplarsLeadToTraces(t *testing.T) {
	traces := newTempo(t)
	found := traces.search(`{ resource.service.name = "paymentservice" && status = error }`)
	if len(found.Traces) == 0 {
		t.Fatal("the shop has no failed charge")
	}
	id, err := query.TraceID(found.Traces[0].TraceID)
	if err != nil {
		t.Fatal(err)
	}

	duration := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "http_server_request_duration_seconds", Help: "h", Buckets: []float64{0.1, 1}})
	duration.(prometheus.ExemplarObserver).ObserveWithExemplar(0.4, prometheus.Labels{"trace_id": id, "span_id": "0102030405060708"})
	registry := prometheus.NewRegistry()
	registry.MustRegister(duration)
	app := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	t.Cleanup(app.Close)
	api := otelcol.RunPrometheus(t, "../..", strings.TrimPrefix(app.URL, "http://"))

	to := provisioned(t, "prometheus.yaml").JSONData.Exemplars
	if len(to) != 1 || to[0].UID != provisioned(t, "tempo.yaml").UID {
		t.Fatalf("exemplars lead to %+v", to)
	}
	linked := ""
	if err := wait.Poll(2*time.Minute, nil, func() error {
		var answer struct {
			Data []struct {
				Exemplars []struct{ Labels map[string]string }
			}
		}
		now := time.Now().Unix()
		err := getJSON(fmt.Sprintf("http://%s/api/v1/query_exemplars?query=%s&start=%d&end=%d", api, url.QueryEscape("http_server_request_duration_seconds_bucket"), now-600, now+600), &answer)
		if err != nil || len(answer.Data) == 0 || len(answer.Data[0].Exemplars) == 0 {
			return fmt.Errorf("exemplars: %+v, %w", answer, err)
		}
		linked = answer.Data[0].Exemplars[0].Labels[to[0].Name]
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// Grafana asks for the hours around the exemplar, too.
	for _, path := range []string{"/api/traces/" + linked, "/api/v2/traces/" + linked, fmt.Sprintf("/api/v2/traces/%s?start=%d&end=%d", linked, shop.Start.Unix()-3600, shop.End.Unix()+3600)} {
		if code, body := traces.get(path, "application/json"); code != 200 || !strings.Contains(string(body), "paymentservice") {
			t.Errorf("%s: %d: %.300s", path, code, body)
		}
	}
}

type dataSource struct {
	UID      string
	JSONData struct {
		Exemplars []struct {
			Name string // of the label with the trace id
			UID  string `yaml:"datasourceUid"`
		} `yaml:"exemplarTraceIdDestinations"`
	} `yaml:"jsonData"`
}

// provisioned returns the data source of a file in deploy/grafana.
func provisioned(t *testing.T, file string) dataSource {
	t.Helper()
	text, err := os.ReadFile("../../deploy/grafana/datasources/" + file)
	if err != nil {
		t.Fatal(err)
	}
	var of struct{ Datasources []dataSource }
	if err := yaml.Unmarshal(text, &of); err != nil || len(of.Datasources) != 1 {
		t.Fatalf("%s: %+v, %v", file, of, err)
	}
	return of.Datasources[0]
}
