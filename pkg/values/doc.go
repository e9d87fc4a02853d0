// Package values defines how a configuration value is written: sizes, durations,
// numbers, ports, addresses, booleans and lists, and which known name a misspelt
// one is nearest to. It is the only grammar of both the programs' configuration
// (pkg/config) and the agent groups' (pkg/agentconfig), so a text means the same
// to both.
//
// Parsers of numbers and truth values ignore white space around the text. There
// is one way to write a number: decimal digits without a plus sign, underscores,
// leading zeros, an exponent or a base prefix. YAML reads 010 as eight and 1_0 as
// ten; here both are errors. Two kinds accept more: [Number] an exponent, and
// [Duration] what time.ParseDuration does, such as 1h05m.
//
// Errors continue a sentence about the value and say what would be right: "is not
// a duration such as 10s, 5m, 1h30m or 30d". They never contain the value, which may
// be a secret; the caller puts it in front. [ErrRange] reports a value that no
// variable can hold.
//
// The package is pure, and its cost is linear in the length of its input.
package values
