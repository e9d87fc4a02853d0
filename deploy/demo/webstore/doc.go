// Package webstore is the OpenTelemetry WebStore as real programs in one
// process: eleven services and a cache that call each other over real gRPC,
// HTTP and Redis sockets, each with its own address and OpenTelemetry SDK, and
// a load generator that shops there.
//
// The call graph is data, in graph.go: a service gets a client for each of its
// edges and for nothing else. The services are data too, in the catalogue of
// store.go. Each builds its handlers from a [service], which holds what all
// services share: the server, the clients, the latency, the telemetry.
//
// The public instrumentations (otelgrpc, otelhttp, redisotel) make the spans,
// under one W3C trace context from the load generator to the cache. The package
// invents no spans. The SDK's own batch processor and OTLP exporter send them,
// and a [Report] counts those that the receiver acknowledged.
//
// The same seed yields the same journeys: who buys what, and whose card is
// refused. Trace ids and the machine's share of latencies differ.
//
// [StartSingle] starts one service in a process of its own, for a setup in
// which each service has its own host or network namespace; [Single.SetTrouble]
// makes it slow or faulty.
//
// A [Store] owns all its goroutines from [Start] to [Store.Close]. Its methods
// are safe for concurrent use; call Close once, after Run has returned.
package webstore
