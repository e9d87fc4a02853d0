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
	id := strings.Repeat("0", 32-len(found.Traces[0].TraceID)) + found.Traces[0].TraceID

	duration := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "http_server_request_duration_seconds", Help: "h", Buckets: []float64{0.1, 1}})
	duration.(prometheus.ExemplarObserver).ObserveWithExemplar(0.4, prometheus.Labels{"trace_id": id, "span_id": "0102030405060708"})
	registry := prometheus.NewRegistry()
	registry.MustRegister(duration)
	app := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	t.Cleanup(app.Close)
	api := otelcol.RunPrometheus(t, "../..", strings.TrimPrefix(app.URL, "http://"))

	label, to := exemplarDestination(t)
	if to != provisionedUID(t, "tempo.yaml") {
		t.Errorf("exemplars lead to the data source %q", to)
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
		linked = answer.Data[0].Exemplars[0].Labels[label]
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

type dataSources struct {
	Datasources []struct {
		UID      string
		JSONData struct {
			Exemplars []struct {
				Name string
				UID  string `yaml:"datasourceUid"`
			} `yaml:"exemplarTraceIdDestinations"`
		} `yaml:"jsonData"`
	}
}

func provisioned(t *testing.T, file string) (of dataSources) {
	t.Helper()
	text, err := os.ReadFile("../../deploy/grafana/datasources/" + file)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &of); err != nil || len(of.Datasources) != 1 {
		t.Fatalf("%s: %+v, %v", file, of, err)
	}
	return of
}

func provisionedUID(t *testing.T, file string) string {
	t.Helper()
	return provisioned(t, file).Datasources[0].UID
}

// exemplarDestination returns the label with the trace id, and the data source that shows it.
func exemplarDestination(t *testing.T) (label, uid string) {
	t.Helper()
	to := provisioned(t, "prometheus.yaml").Datasources[0].JSONData.Exemplars
	if len(to) != 1 {
		t.Fatalf("exemplars lead to %+v", to)
	}
	return to[0].Name, to[0].UID
}
