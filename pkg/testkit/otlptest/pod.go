package otlptest

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// service is one of the WebStore's programs.
type service struct {
	name     string
	language string
	runtime  string
	scope    string // instrumentation scope
	pods     int
	port     int
	old      bool // attributes of the conventions before 1.21
}

// services are those of the demo's diagram, each in its language there.
var services = map[string]*service{
	"adservice":             {"adservice", "java", "OpenJDK Runtime Environment", "io.opentelemetry.grpc-1.6", 2, 9555, true},
	"cartservice":           {"cartservice", "dotnet", ".NET", "OpenTelemetry.Instrumentation.AspNetCore", 3, 7070, false},
	"checkoutservice":       {"checkoutservice", "go", "go", "go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc", 3, 5050, false},
	"currencyservice":       {"currencyservice", "nodejs", "nodejs", "@opentelemetry/instrumentation-grpc", 3, 7001, false},
	"emailservice":          {"emailservice", "ruby", "ruby", "OpenTelemetry::Instrumentation::Sinatra", 2, 6060, true},
	"frontend":              {"frontend", "go", "go", "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp", 4, 8080, false},
	"loadgenerator":         {"loadgenerator", "python", "cpython", "opentelemetry.instrumentation.requests", 2, 0, false},
	"paymentservice":        {"paymentservice", "nodejs", "nodejs", "@opentelemetry/instrumentation-grpc", 2, 50051, false},
	"productcatalogservice": {"productcatalogservice", "go", "go", "go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc", 4, 3550, false},
	"recommendationservice": {"recommendationservice", "python", "cpython", "opentelemetry.instrumentation.grpc", 3, 8081, true},
	"shippingservice":       {"shippingservice", "go", "go", "go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc", 2, 50052, false},
}

// serviceOrder fixes the order in which pods are made.
var serviceOrder = []string{
	"adservice", "cartservice", "checkoutservice", "currencyservice", "emailservice", "frontend",
	"loadgenerator", "paymentservice", "productcatalogservice", "recommendationservice", "shippingservice",
}

const (
	namespace   = "open-telemetry-demo"
	cluster     = "webstore-eu-1"
	redisHost   = "redis-cart"
	redisIP     = "10.42.7.9"
	redisPort   = 6379
	nodeCount   = 6
	sdkVersion  = "1.38.0"
	schemaURL   = "https://opentelemetry.io/schemas/1.37.0"
	appVersion  = "2.1.4"
	osVersion   = "6.8.0-1021-aws"
	hostDomains = ".eu-west-1.compute.internal"
)

// pod is one instance of a service, with a resource of its own.
type pod struct {
	service  *service
	ip       string
	name     string
	resource *resourcepb.Resource
	scope    *commonpb.InstrumentationScope
	waiting  []*tracepb.Span // of ServiceBatch: not yet in a request
}

func newPods(rng *rand.Rand, start time.Time) map[string][]*pod {
	pods := map[string][]*pod{}
	host := 10
	for _, name := range serviceOrder {
		s := services[name]
		replicaSet := hex.EncodeToString(words(rng, 5))
		for range s.pods {
			host++
			pods[name] = append(pods[name], newPod(rng, s, replicaSet, host, start))
		}
	}
	return pods
}

func newPod(rng *rand.Rand, s *service, replicaSet string, host int, start time.Time) *pod {
	node := rng.IntN(nodeCount)
	p := &pod{
		service: s,
		ip:      fmt.Sprintf("10.42.%d.%d", node, host),
		name:    s.name + "-" + replicaSet + "-" + hex.EncodeToString(words(rng, 3))[:5],
		scope:   &commonpb.InstrumentationScope{Name: s.scope, Version: sdkVersion},
	}
	nodeName := fmt.Sprintf("ip-10-0-%d-%d%s", node, 20+node*11, hostDomains)
	p.resource = &resourcepb.Resource{Attributes: []*commonpb.KeyValue{
		Text("service.name", s.name),
		Text("service.namespace", "webstore"),
		Text("service.version", appVersion),
		Text("service.instance.id", uuid(words(rng, 16))),
		Text("deployment.environment.name", "production"),
		Text("k8s.cluster.name", cluster),
		Text("k8s.namespace.name", namespace),
		Text("k8s.deployment.name", s.name),
		Text("k8s.pod.name", p.name),
		Text("k8s.pod.uid", uuid(words(rng, 16))),
		Text("k8s.pod.ip", p.ip),
		Text("k8s.pod.start_time", start.Add(-time.Duration(1+rng.IntN(200))*time.Hour).Format(time.RFC3339)),
		Text("k8s.node.name", nodeName),
		Text("host.name", p.name),
		Text("host.arch", "amd64"),
		Text("os.type", "linux"),
		Text("os.version", osVersion),
		Text("container.id", hex.EncodeToString(words(rng, 32))),
		Text("process.executable.name", s.name),
		Number("process.pid", 1),
		list("process.command_args", "/usr/local/bin/"+s.name, "--listen", fmt.Sprintf("0.0.0.0:%d", s.port)),
		Text("process.runtime.name", s.runtime),
		Text("telemetry.sdk.name", "opentelemetry"),
		Text("telemetry.sdk.language", s.language),
		Text("telemetry.sdk.version", sdkVersion),
	}}
	return p
}

func (p *pod) resourceSpans() *tracepb.ResourceSpans {
	return &tracepb.ResourceSpans{
		Resource:   p.resource,
		SchemaUrl:  schemaURL,
		ScopeSpans: []*tracepb.ScopeSpans{{Scope: p.scope, SchemaUrl: schemaURL}},
	}
}

func words(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}
