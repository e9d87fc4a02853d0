// Package schema holds the contracts of MetaFlow as data: the names that
// programs other than ours read and write. Changing a value here breaks
// somebody; adding one does not.
package schema

// Kafka topics.
const (
	// TopicSpans carries OTLP ExportTraceServiceRequest messages in protobuf,
	// partitioned by trace ID.
	TopicSpans = "metaflow.spans"
	// TopicFlows carries metaflow.agent.v1.ExportFlowsRequest messages, partitioned by the two
	// ends of a connection, so that what both ends say of it meets.
	TopicFlows = "metaflow.flows"
	// TopicDeadLetter carries what could not be decoded or stored, each record
	// with its cause in the headers below.
	TopicDeadLetter = "metaflow.dead-letter"
	// TopicControl carries what operators did to the agent groups: one partition, a
	// metaflow.agent.v1.Command each, kept for ever. The order of its records is the
	// order of the changes.
	TopicControl = "metaflow.control"
	// TopicResources carries what is known of agents and pods: one partition,
	// compacted, the key says what a record is about.
	TopicResources = "metaflow.resources"
)

// Keys of records of TopicResources begin with one of these.
const (
	// KeyAgent goes before an agent's id; the value is a metaflow.agent.v1.AgentStatus.
	KeyAgent = "agent/"
	// KeyPod goes before a cluster, a slash and a pod's uid; the value is a
	// metaflow.agent.v1.Pod. Slashes and percent signs in a cluster's name are %2F and %25.
	KeyPod = "pod/"
	// KeyService goes before a cluster, a slash, a namespace, a slash and a service's
	// name; the value is a metaflow.agent.v1.Service.
	KeyService = "service/"
	// KeyBinding goes before an agent's id; the value is JSON that pkg/rpc/agentauth reads: what
	// the id is bound to.
	KeyBinding = "agent-binding/"
)

// Headers of a record of TopicSpans or TopicFlows. All are optional for the reader: records
// written by other programs have none of them.
const (
	// HeaderAgent is the id of the agent that delivered the request, as text.
	HeaderAgent = "metaflow-agent"
	// HeaderReceived is the time of first receipt, by an agent or by the gateway, by which the times of
	// spans and flows are judged: nanoseconds since the Unix epoch, big-endian, 8 bytes.
	HeaderReceived = "metaflow-received"
	// HeaderHash is the XXH3-128 hash of the record's value as it was before spans were left out for
	// their times, big-endian, 16 bytes.
	HeaderHash = "metaflow-hash"
	// HeaderResend is present, with the value "1", when the sender said that it
	// may have delivered the same spans or flows before.
	HeaderResend = "metaflow-resend"
)

// Headers of a record of TopicDeadLetter, beside those of the record it came
// from. All values are text.
const (
	HeaderCause     = "metaflow-cause"     // what was wrong
	HeaderTopic     = "metaflow-topic"     // where the data came from
	HeaderPartition = "metaflow-partition" // decimal
	HeaderOffset    = "metaflow-offset"    // decimal
	// HeaderTruncated is there when Kafka refused the value, which is left out: how
	// many bytes it had, decimal.
	HeaderTruncated = "metaflow-truncated"
)

// gRPC metadata keys that an agent adds to TraceService/Export and FlowService/ExportFlows.
const (
	// MetadataAgent is the agent's id.
	MetadataAgent = "metaflow-agent"
	// MetadataResend is "1" when this request may have been delivered before.
	MetadataResend = "metaflow-resend"
	// MetadataSecret is what the agent made at its first start and alone knows.
	MetadataSecret = "metaflow-secret"
	// MetadataToken is the installation's, which agents are given.
	MetadataToken = "metaflow-token"
	// MetadataReceived is when the agent took the request from its sender: nanoseconds since
	// the Unix epoch, decimal.
	MetadataReceived = "metaflow-received"
)

// What a google.rpc.ErrorInfo in the status of a refused TraceService/Export or FlowService/ExportFlows says.
const (
	ErrorDomain = "metaflow"
	// ReasonAtLimit says that the server refused the request because of what it has
	// in flight, before anything of it was stored.
	ReasonAtLimit = "AT_LIMIT"
)
