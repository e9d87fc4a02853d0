// Package tempo serves the part of Tempo's HTTP API that Grafana's Tempo data source needs:
// traces by id, search by TraceQL, names and values of attributes.
//
// It knows the API from Tempo's documentation and the requests that Grafana sends. Of
// TraceQL it understands conditions on spans, their combination within and between braces,
// and select(). Structural operators, aggregates and metrics are refused with an error that
// names them. The intrinsic network.verdict, which Tempo does not have, asks for what the
// network did to a call.
package tempo
