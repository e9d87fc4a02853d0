package query

import (
	"context"
	"encoding/hex"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/metaflowys/metaflow-server/integration/internal/chromium"
	"github.com/metaflowys/metaflow-server/integration/internal/shop"
	"github.com/metaflowys/metaflow-server/pkg/query"
	"github.com/metaflowys/metaflow-server/pkg/query/ui"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

var update = flag.Bool("update", false, "write the picture of the page into docs")

// browser is a page in a headless Chromium. It fails the test for each request that leaves
// the server, and for each error of the page.
type browser struct {
	t   *testing.T
	ctx context.Context // chromedp's handle of the page
	url string
}

// openPage shows the page of the shop's hour; without Chromium the test is skipped.
func openPage(t *testing.T) browser {
	t.Helper()
	r, _ := reader(t, config())
	return openPageOf(t, r)
}

func openPageOf(t *testing.T, r *query.Reader) browser {
	t.Helper()
	page, stop, err := chromium.Start(5 * time.Minute)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Logf("stop the browser: %v", err)
		}
	})
	server := httptest.NewServer(ui.NewHandler(r, ui.Options{
		Guard: func(h http.Handler) http.Handler { return h }, Grafana: "https://grafana.example", Jaeger: "https://jaeger.example/",
	}))
	t.Cleanup(server.Close)
	var mu sync.Mutex
	chromedp.ListenTarget(page, func(event any) {
		mu.Lock()
		defer mu.Unlock()
		switch e := event.(type) {
		case *network.EventRequestWillBeSent:
			if !strings.HasPrefix(e.Request.URL, server.URL) && !strings.HasPrefix(e.Request.URL, "data:") {
				t.Errorf("the page asks for %s", e.Request.URL)
			}
		case *runtime.EventExceptionThrown:
			t.Errorf("the page fails: %s", e.ExceptionDetails.Error())
		}
	})
	return browser{t, page, server.URL}
}

func (b browser) do(actions ...chromedp.Action) {
	b.t.Helper()
	if err := chromedp.Run(b.ctx, actions...); err != nil {
		var status string
		_ = chromedp.Run(b.ctx, chromedp.Text("#status", &status, chromedp.ByQuery))
		b.t.Fatalf("%v; the page says %q", err, status)
	}
}

// text returns the text of the first element.
func (b browser) text(selector string) (text string) {
	b.t.Helper()
	b.do(chromedp.Text(selector, &text, chromedp.ByQuery))
	return text
}

// picture saves what is to be seen, if the test was asked to.
func (b browser) picture(name string) {
	b.t.Helper()
	var png []byte
	b.do(chromedp.CaptureScreenshot(&png))
	if len(png) < 10_000 {
		b.t.Errorf("the picture %s has %d bytes", name, len(png))
	}
	if *update {
		if err := os.WriteFile("../../docs/images/"+name, png, 0o600); err != nil {
			b.t.Fatal(err)
		}
	}
}

// A person without a mouse goes from the map of services, over the edge in trouble, to a
// trace with the network's verdict and its evidence.
func TestPageByKeyboard(t *testing.T) {
	b := openPage(t)
	b.do(chromedp.Navigate(b.url+"/ui/"), chromedp.WaitVisible(".edge.bad", chromedp.ByQuery))
	if text := b.text("main > p"); text != "1 edge is in trouble: checkoutservice → paymentservice (retransmission)." {
		t.Errorf("the page says %q", text)
	}
	b.picture("page-services.png")

	// Tab reaches the edge in trouble.
	reached := false
	for range 60 {
		b.do(chromedp.KeyEvent(kb.Tab), chromedp.Evaluate(`document.activeElement.matches(".edge.bad")`, &reached))
		if reached {
			break
		}
	}
	var label string
	b.do(chromedp.Evaluate(`document.activeElement.getAttribute("aria-label") || ""`, &label))
	if !strings.HasPrefix(label, "checkoutservice to paymentservice: ") || !strings.HasSuffix(label, "network: retransmission") {
		t.Fatalf("Tab does not reach the edge in trouble, but %q", label)
	}
	b.do(chromedp.KeyEvent(kb.Enter), chromedp.WaitVisible("figure svg", chromedp.ByQuery))
	if text := b.text("h2"); text != "checkoutservice → paymentservice" {
		t.Errorf("the edge is called %q", text)
	}

	b.do(chromedp.WaitVisible("main table a", chromedp.ByQuery))
	b.picture("page-edge.png")
	if text := b.text("main table .bad-text"); text != "retransmission" {
		t.Errorf("the network of the slowest trace is %q", text)
	}
	b.do(chromedp.Evaluate(`document.querySelector("main table a").focus()`, nil), chromedp.KeyEvent(kb.Enter), chromedp.WaitVisible(".waterfall .row", chromedp.ByQuery))
	if text := b.text(".bad-text"); !strings.HasPrefix(text, "It was the network: retransmission, at ") {
		t.Errorf("the trace says %q", text)
	}
	// The arrow keys go to the first call that was harmed; Enter shows the evidence.
	b.do(chromedp.Evaluate(`document.querySelector(".row[type]").focus()`, nil))
	harmed := false
	for range 40 {
		b.do(chromedp.KeyEvent(kb.ArrowDown), chromedp.Evaluate(`document.activeElement.querySelector(".harmed") !== null`, &harmed))
		if harmed {
			break
		}
	}
	if !harmed {
		t.Fatal("the arrow keys do not reach a harmed span")
	}
	// The arrow keys fold what is below a span; N finds the harmed call again.
	var visible, all int
	const count = `[...document.querySelectorAll(".waterfall li")].filter((e) => !e.hidden).length`
	b.do(chromedp.Evaluate(count, &all), chromedp.Evaluate(`document.querySelector(".row[type]").focus()`, nil), chromedp.KeyEvent(kb.ArrowLeft), chromedp.Evaluate(count, &visible))
	if all != 22 || visible != 1 {
		t.Errorf("of %d spans %d are to be seen below a folded root", all, visible)
	}
	b.do(chromedp.KeyEvent("n"), chromedp.Evaluate(count, &visible), chromedp.Evaluate(`document.activeElement.querySelector(".harmed") !== null`, &harmed))
	if visible != all || !harmed {
		t.Errorf("N shows %d of %d spans, and finds a harmed one: %t", visible, all, harmed)
	}
	var expanded, evidence string
	b.do(chromedp.KeyEvent(kb.Enter), chromedp.Evaluate(`document.activeElement.getAttribute("aria-expanded")`, &expanded),
		chromedp.Evaluate(`document.activeElement.nextSibling.innerText`, &evidence))
	if expanded != "true" || !strings.Contains(evidence, "segments sent again") {
		t.Errorf("expanded is %q, with %q", expanded, evidence)
	}
	b.picture("page-trace.png")
	var links []string
	b.do(chromedp.Evaluate(`[...document.querySelectorAll("main p a")].map((a) => a.href)`, &links))
	if len(links) != 2 || !strings.HasPrefix(links[0], "https://grafana.example/explore?") || !strings.HasPrefix(links[1], "https://jaeger.example/trace/") {
		t.Errorf("links: %q", links)
	}
}

// The page says what is wrong, and its form finds a trace.
func TestPageFindsTraces(t *testing.T) {
	b := openPage(t)
	b.do(chromedp.Navigate(b.url+"/ui/#/trace/"+strings.Repeat("7", 32)), chromedp.WaitVisible("#status.error", chromedp.ByQuery))
	if text := b.text("#status"); text != "no span of this trace is stored" {
		t.Errorf("the page says %q", text)
	}
	b.do(chromedp.SendKeys("#trace", "xyz"+kb.Enter, chromedp.ByQuery), chromedp.WaitVisible(`//p[contains(., "hexadecimal")]`))
}

// A trace whose network is not known has the reason of most of its calls, not that of its
// first span.
func TestPageSaysWhyTheNetworkIsNotKnown(t *testing.T) {
	at := uint64(shop.Start.Add(-2 * time.Hour).UnixNano())
	span := func(id byte, kind tracepb.Span_SpanKind, attributes ...*commonpb.KeyValue) *tracepb.Span {
		return &tracepb.Span{
			TraceId: []byte("why_is_it_so____"), SpanId: []byte{7, 6, 5, 4, 3, 2, 1, id}, Kind: kind, Attributes: attributes,
			StartTimeUnixNano: at + uint64(id), EndTimeUnixNano: at + 1e6,
		}
	}
	loopback := otlptest.Text("network.peer.address", "127.0.0.1")
	store(t, &coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource: &resourcepb.Resource{Attributes: []*commonpb.KeyValue{otlptest.Text("service.name", "unseen"), otlptest.Text("app.host.ip", "192.0.2.7")}},
		ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{
			span(1, tracepb.Span_SPAN_KIND_INTERNAL), span(2, tracepb.Span_SPAN_KIND_INTERNAL), span(3, tracepb.Span_SPAN_KIND_INTERNAL),
			span(4, tracepb.Span_SPAN_KIND_CLIENT, otlptest.Text("network.peer.address", "192.0.2.8")),
			span(5, tracepb.Span_SPAN_KIND_CLIENT, loopback), span(6, tracepb.Span_SPAN_KIND_CLIENT, loopback),
		}}},
	}}})
	b := openPage(t)
	b.do(chromedp.Navigate(b.url+"/ui/#/trace/"+hex.EncodeToString([]byte("why_is_it_so____"))), chromedp.WaitVisible(".waterfall .row", chromedp.ByQuery))
	if text := b.text("main p.dim"); text != "What the network did is not known: loopback: the connection does not leave the host or pod." {
		t.Errorf("the page says %q", text)
	}
}
