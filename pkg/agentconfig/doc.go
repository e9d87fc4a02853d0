// Package agentconfig defines the configuration of an agent group: the keys,
// their types, ranges and defaults, and how the text of a file becomes a
// [Config].
//
// A [Document] holds only the keys that are set; the agent that reads it
// applies its defaults to the others. Documents are values: no method changes
// one, and two documents with the same keys and values have the same text.
// [Parse] is for files written by people; it rejects everything it is not sure
// about and reports all problems at once. [ParseLenient] is for agents, whose
// server may be newer than they are.
//
// Package values defines how a value is written, as for the programs' own
// configuration. In addition, a value must have the YAML type of its key:
// "38086" in quotes is a text and not a port. Lists are YAML lists, null is no
// value, and aliases are rejected, because the text comes from other machines.
//
// Keys are named as in [Catalogue]. The equivalent names of both generations of
// the predecessor are accepted too, but the text of a Document always has our
// own names.
//
// The package does no I/O. Its functions are safe for concurrent use.
package agentconfig
