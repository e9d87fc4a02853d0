// Package agentgrpc serves ControlService, the streams that agents hold open, over a
// gRPC server of somebody else.
//
// It owns what lies between a stream and a [Session]: the order of messages, deadlines,
// sizes, what may stand in a message, and the status that a stream ends with. Who an agent is,
// where it belongs and what it is configured with is decided by a [Controller].
//
// What it promises:
//   - A stream that does not register within [RegistrationTimeout] is DEADLINE_EXCEEDED, and so is
//     one that says nothing for [IdleTimeout] afterwards, or does not take what is sent
//     to it for [SendTimeout].
//   - A message that is too large or makes no sense is INVALID_ARGUMENT, and ends the
//     stream. Texts in heartbeats are cut and cleaned instead: an agent in trouble must not be
//     lost by the words it has for it.
//   - Beyond the number of streams allowed the answer is RESOURCE_EXHAUSTED, at once.
//   - A Session that was given out is left exactly once, when its stream ends.
//   - Only the newest configuration is sent. One that was overtaken while the agent was slow
//     is never sent.
//
// Concurrency: each stream has the goroutine that gRPC gave it, which alone uses the Session,
// and one each that receives and sends and does nothing else. These two
// end a moment after the stream, when gRPC releases them.
package agentgrpc
