// Package webstore is the OpenTelemetry WebStore as real programs in one
// process: eleven services and a cache that call each other over real gRPC,
// HTTP and Redis sockets, each with an address and an OpenTelemetry SDK of its
// own, and a load generator that buys there.
//
// Who calls whom is data, in graph.go: a service gets a client for each of its
// edges and for nothing else. What the services are is data too, in catalogue
// of store.go; each builds its handlers from its [service], which holds what is
// common to all: the server, the clients, the latency, the telemetry.
//
// The spans are those that the public instrumentations make (otelgrpc,
// otelhttp, redisotel), under one W3C trace context from the load generator to the
// cache; nothing here invents a span that did not happen. They leave through the
// SDK's own batch processor and OTLP exporter, and a [Report] says how many
// the receiver acknowledged.
//
// The same seed gives the same journeys: who buys what, and whose card is
// refused. Trace ids and what the machine adds to latencies differ.
//
// Where each service is to have a process of its own, with a host or a network
// namespace around it, [StartSingle] starts one of them, and tells it
// to have [Trouble].
//
// A [Store] owns all its goroutines from [Start] to [Store.Close]. Its methods
// may be called from any goroutine; Close once, after Run has returned.
package webstore
