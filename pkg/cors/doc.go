// Package cors decides which web pages may send traces: the origins and headers
// that an operator configures, and whether the origin of a request is among them.
//
// It reads and compares text. pkg/otlphttp answers browsers with what is decided here, and
// pkg/agentconfig and pkg/gateway take the same values in their configurations.
//
// Everything in it is immutable once parsed and may be used by many at a time.
package cors
