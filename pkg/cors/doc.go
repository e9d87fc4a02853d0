// Package cors decides which web pages may send traces: it parses the origins and headers
// that an operator configures, and matches the origin of a request against them.
//
// pkg/otlphttp implements CORS with it; pkg/agentconfig and pkg/gateway use the same
// values in their configurations.
//
// Values are immutable once parsed and safe for concurrent use.
package cors
