package main

import (
	"bytes"
	"flag"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/testkit/golden"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// at sets the times of s relative to a fixed moment, in milliseconds.
func at(s span, start, duration float64) span {
	ms := func(f float64) time.Duration { return time.Duration(f * float64(time.Millisecond)) }
	s.start = time.Date(2026, time.June, 1, 12, 0, 0, 0, time.UTC).Add(ms(start))
	s.duration = ms(duration)
	return s
}

// declined returns a checkout that fails at the payment.
func declined() []span {
	return []span{
		at(span{id: "1", service: "loadgenerator", name: "user journey", kind: "internal"}, 0, 100),
		at(span{id: "2", parent: "1", service: "loadgenerator", name: "POST", kind: "client", protocol: "http", peer: "127.0.1.20:41001", failed: true}, 1, 98),
		at(span{id: "3", parent: "2", service: "frontend", name: "POST /cart/checkout", kind: "server", protocol: "http", endpoint: "/cart/checkout", peer: "127.0.1.21:50001"}, 2, 96),
		at(span{id: "4", parent: "3", service: "frontend", name: "oteldemo.CheckoutService/PlaceOrder", kind: "client", protocol: "grpc", peer: "127.0.1.19:41002", failed: true, message: "card expired in 2021-03"}, 10, 80),
		at(span{id: "5", parent: "4", service: "checkoutservice", name: "oteldemo.CheckoutService/PlaceOrder", kind: "server", protocol: "grpc", peer: "127.0.1.20:50002", failed: true, message: "card expired in 2021-03"}, 15, 70),
		at(span{id: "6", parent: "5", service: "checkoutservice", name: "price order", kind: "internal"}, 16, 30),
		at(span{id: "7", parent: "6", service: "checkoutservice", name: "oteldemo.ShippingService/GetQuote", kind: "client", protocol: "grpc", peer: "127.0.1.16:41003"}, 17, 20),
		at(span{id: "8", parent: "7", service: "shippingservice", name: "oteldemo.ShippingService/GetQuote", kind: "server", protocol: "grpc", peer: "127.0.1.19:50003"}, 20, 12),
		at(span{id: "9", parent: "5", service: "checkoutservice", name: "oteldemo.PaymentService/Charge", kind: "client", protocol: "grpc", peer: "127.0.1.14:41004", failed: true, message: "card expired in 2021-03"}, 60, 20),
		at(span{id: "a", parent: "9", service: "paymentservice", name: "oteldemo.PaymentService/Charge", kind: "server", protocol: "grpc", peer: "127.0.1.19:50004", failed: true, message: "card expired in 2021-03"}, 61, 18),
		at(span{id: "b", parent: "3", service: "frontend", name: "redis.pipeline hincrby expire and something longer than its column", kind: "client", protocol: "redis", peer: "127.0.1.22:6379"}, 95, 0.05),
	}
}

func TestWaterfall(t *testing.T) {
	orphan := append(declined(),
		at(span{id: "c", parent: "lost", service: "emailservice", name: "send", kind: "server", endpoint: "/confirmation", protocol: "http"}, 90, 30))
	tests := map[string]struct {
		spans []span
		out   terminal
	}{
		"waterfall.txt":         {declined(), terminal{width: defaultWidth}},
		"waterfall_narrow.txt":  {declined(), terminal{width: minWidth}},
		"waterfall_colours.txt": {declined(), terminal{width: maxWidth, colour: true}},
		"waterfall_orphan.txt":  {orphan, terminal{width: defaultWidth}},
		"waterfall_empty.txt":   {nil, terminal{width: defaultWidth}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			tc.out.w = &out
			tc.out.waterfall(tc.spans)
			golden.Check(t, filepath.Join("testdata", name), out.String(), *update)
		})
	}
}

// A trace that is too long for a screen is cut, and the output shows it.
func TestWaterfallIsBounded(t *testing.T) {
	spans := []span{at(span{id: "root", service: "a", name: "root", kind: "internal"}, 0, 1000)}
	for i := range 500 {
		spans = append(spans, at(span{id: string(rune('A' + i)), parent: "root", service: "b", name: "step", kind: "internal"}, float64(i), 1))
	}
	var out bytes.Buffer
	(&terminal{w: &out, width: defaultWidth}).waterfall(spans)
	if got, want := bytes.Count(out.Bytes(), []byte("\n")), maxRows+3; got != want {
		t.Errorf("%d lines, want %d", got, want)
	}
	if !bytes.Contains(out.Bytes(), []byte("… and 431 more rows")) {
		t.Error("the waterfall does not show that it is cut")
	}
}

func TestCalls(t *testing.T) {
	for name, out := range map[string]terminal{
		"calls.txt":         {width: defaultWidth},
		"calls_colours.txt": {width: maxWidth, colour: true},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			out.w = &b
			out.example("network namespaces need root")
			golden.Check(t, filepath.Join("testdata", name), b.String(), *update)
		})
	}
}

func TestLossFound(t *testing.T) {
	with := func(change func(*hop)) []hop {
		hops := slices.Clone(exampleCalls)
		change(&hops[0])
		return hops
	}
	for name, tc := range map[string]struct {
		hops []hop
		want bool
	}{
		"found":               {exampleCalls, true},
		"nothing":             {nil, false},
		"all clean":           {with(func(h *hop) { h.verdict = clean }), false},
		"not all is there":    {with(func(h *hop) { h.withoutFlow = 1 }), false},
		"another has trouble": {with(func(h *hop) { h.caller = "cartservice" }), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := lossFound(tc.hops); got != tc.want {
				t.Errorf("lossFound = %t, want %t", got, tc.want)
			}
		})
	}
}

func TestGraph(t *testing.T) {
	edges := []edge{
		{"frontend", "currencyservice", "grpc", "127.0.1.12", 20480, 812.5, 0, []float64{0.7, 3.1, 7.46}},
		{"checkoutservice", "paymentservice", "grpc", "127.0.1.14", 160, 12.25, 3.125, []float64{4.19, 5.66, 12345.67}},
		{"cartservice", "redis", "redis", "127.0.1.22", 96, 96, 0, []float64{0.2, 4.1, 5.35}},
	}
	for name, out := range map[string]terminal{
		"graph.txt":        {width: defaultWidth},
		"graph_narrow.txt": {width: minWidth},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			out.w = &b
			out.graph(edges)
			golden.Check(t, filepath.Join("testdata", name), b.String(), *update)
		})
	}
}
