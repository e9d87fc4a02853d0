// Package config fills a program's configuration struct from, in rising order
// of precedence: the defaults that the struct holds, one YAML file, environment
// variables, and flags.
//
// A configuration is a struct of structs. Every field has a mapstructure tag, its
// key, and a doc tag, its meaning; secret:"true" keeps a value out of errors and
// of what [Print] writes; unit:"bytes" makes an integer accept sizes such as
// 64MiB. Fields may be strings, booleans, integers, floats, time.Duration,
// anything with UnmarshalText, and slices of these. The packages that own the structs need
// not know this package.
//
// [Load] reports all that is wrong at once as one [Error]: each problem by its
// key, with the value found and where it was set. It never mends a value
// silently. The values of secrets and of unknown keys, which may be
// secrets misspelt, are never shown.
//
// A malformed struct (a field without a key, of an unsupported type) is a
// programmer's error and panics. The package keeps no state.
package config
