// Package agentconfig is what the configuration of an agent group may say: the keys,
// their types, ranges and defaults, and how the text of a file becomes a [Config].
//
// A [Document] holds the keys that somebody set and nothing else; what is not set has the
// default of the agent that reads it. Documents are values: no method changes one, and
// two documents with the same keys and values have the same text. [Parse] is for what
// people write and refuses whatever it is not sure about, all of it at once. [ParseLenient]
// is for agents, whose server may be newer than they are.
//
// pkg/values defines how a value is written, as for the programs' own configuration. On
// top of it, a value must have the YAML type of its key: "38086" in quotes is a text and no
// port. Lists are YAML lists, null is no value, and aliases are refused, because the text
// comes from other machines.
//
// Keys are named as in [Catalogue]. The names of both generations of the predecessor that
// mean the same are accepted too, and the text of a Document always has our own names.
//
// The package does no I/O. Its functions may be called from several goroutines.
package agentconfig
