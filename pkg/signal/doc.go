// Package signal holds what all signals share. A signal is one kind of data
// that a server takes from senders, carries through Kafka and stores in one
// table: traces (pkg/signal/traces), and the flows of agents
// (pkg/signal/flows).
//
// A request of a signal is one protobuf message: an envelope, which holds
// groups, which hold groups or items. An item becomes a row. [Signal] describes
// that form, and a package below this one declares one for each signal. The
// gateway, the writer, the agent, the RPC server and the reader of dead letters
// take a Signal and know nothing else of the data.
//
// The bytes of a request stay bytes: nothing here unmarshals them. [Next] is
// the loop that everything else is built on. A request with a broken wire, at
// whatever level, is [ErrMalformed] as a whole, as for the official protobuf
// runtime, because no length in it can be trusted. A text that is not UTF-8 is
// repaired instead ([Message.Repair]).
//
// The package does no I/O, reads no clock and starts no goroutine.
package signal
