// Package config fills a program's configuration struct from, in increasing
// order of precedence: the defaults in the struct, one YAML file, environment
// variables, and flags. viper decides which of them counts for a key; this
// package reads the file, binds variables and flags, and parses the texts that
// viper returns.
//
// A configuration is a struct of structs. Every field has a mapstructure tag,
// its key, and a doc tag, its meaning. The tag secret:"true" keeps a value out
// of errors and of the output of [Print]; unit:"bytes" makes an integer accept
// sizes such as 64MiB. Fields are strings, booleans, integers, floats,
// time.Duration, types with UnmarshalText, and slices of these; pkg/values
// defines how they are written. The packages that own the structs do not import
// this one.
//
// [Load] reports all problems at once, as one [Error]: each by its key, with
// the value found and where it was set. It never corrects a value silently. It
// never shows the values of secrets, nor those of unknown keys and variables,
// which may be misspelt secrets.
//
// A malformed struct (a field without a key or of an unsupported type) panics,
// because it is a programming error. The package keeps no state.
package config
