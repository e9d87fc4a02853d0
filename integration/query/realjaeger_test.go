package query

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/integration/internal/otelcol"
	"github.com/metaflowys/metaflow-server/integration/internal/shop"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// getJSON reads a JSON answer.
func getJSON(url string, v any) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %.500s", url, resp.Status, body)
	}
	return json.Unmarshal(body, v)
}

// A real Jaeger with this storage lists services and operations, searches, shows a trace
// with the network's attributes and warning, and draws the graph of dependencies.
// `make jaeger` builds it.
func TestRealJaeger(t *testing.T) {
	api, _ := otelcol.RunJaeger(t, "../..", newJaeger(t).Target(), "127.0.0.1:1")
	var services struct{ Data []string }
	if err := wait.Poll(2*time.Minute, nil, func() error {
		if err := getJSON("http://"+api+"/api/services", &services); err != nil {
			return err
		}
		if !strings.Contains(strings.Join(services.Data, " "), "paymentservice") {
			return fmt.Errorf("services: %q", services.Data)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	var operations struct {
		Data []struct{ Name, SpanKind string }
	}
	if err := getJSON("http://"+api+"/api/operations?service=paymentservice", &operations); err != nil || len(operations.Data) != 1 || operations.Data[0].Name != "Charge" || operations.Data[0].SpanKind != "server" {
		t.Errorf("operations: %+v, %v", operations, err)
	}
	type traces struct {
		Data []struct {
			TraceID string
			Spans   []struct {
				OperationName string
				Tags          []struct {
					Key, Type string
					Value     any
				}
				Logs     []any
				Warnings []string
			}
		}
	}
	var found traces
	search := fmt.Sprintf("http://%s/api/traces?service=paymentservice&limit=2&start=%d&end=%d&tags=%s", api,
		shop.Start.UnixMicro(), shop.End.UnixMicro(), "%7B%22metaflow.network.verdict%22%3A%22retransmission%22%7D")
	if err := getJSON(search, &found); err != nil || len(found.Data) == 0 {
		t.Fatalf("a search for a verdict: %+v, %v", found, err)
	}
	var one traces
	if err := getJSON("http://"+api+"/api/traces/"+found.Data[0].TraceID, &one); err != nil || len(one.Data) != 1 || len(one.Data[0].Spans) != 22 {
		t.Fatalf("a trace: %+v, %v", one, err)
	}
	// Jaeger's UI shows a trace that was found as it was found, and asks for others.
	for how, of := range map[string]traces{"a trace that was found": found, "a trace by its id": one} {
		warned := 0
		for _, s := range of.Data[0].Spans {
			for _, w := range s.Warnings {
				if !strings.HasPrefix(w, "network: retransmission: ") || s.OperationName != "Charge" {
					t.Errorf("%s: %s: %s", how, s.OperationName, w)
				}
				warned++
				for _, tag := range s.Tags {
					if tag.Key == "metaflow.network.retransmits" && tag.Type != "int64" {
						t.Errorf("%+v", tag)
					}
				}
			}
		}
		if warned == 0 {
			t.Errorf("%s: no span has a warning", how)
		}
	}
	var dependencies struct {
		Data []struct {
			Parent, Child string
			CallCount     int
		}
	}
	if err := getJSON(fmt.Sprintf("http://%s/api/dependencies?endTs=%d&lookback=%d", api, shop.End.UnixMilli(), time.Hour.Milliseconds()), &dependencies); err != nil || len(dependencies.Data) != 7 {
		t.Errorf("dependencies: %+v, %v", dependencies, err)
	}
}
