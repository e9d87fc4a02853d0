// Package config fills a program's configuration struct from, in rising order of
// precedence: the defaults that the struct holds, one YAML file, environment
// variables, and flags. viper decides which of them counts for a key; this package
// reads the file, binds variables and flags, and parses the texts that viper answers.
//
// A configuration is a struct of structs. Every field has a mapstructure tag, its
// key, and a doc tag, its meaning. The tag secret:"true" keeps a value out of errors
// and of what [Print] writes; unit:"bytes" makes an integer accept sizes such as
// 64MiB. Fields are strings, booleans, integers, floats, time.Duration, types with
// UnmarshalText, and slices of these; pkg/values defines how they are written. The
// packages that own the structs do not import this one.
//
// [Load] reports everything that is wrong at once, as one [Error]: each problem by
// its key, with the value found and where it was set. It never mends a value
// silently. It never shows the values of secrets, nor those of unknown keys and
// variables, which may be misspelt secrets.
//
// A malformed struct (a field without a key or of an unsupported type) panics: it
// is a programmer's error. The package keeps no state.
package config
