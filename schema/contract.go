// Package schema defines MetaFlow's contracts as data: names that other programs read and
// write. Changing a value breaks other programs; adding one does not.
package schema

// Kafka topics.
const (
	// TopicSpans carries OTLP ExportTraceServiceRequest messages in protobuf,
	// partitioned by trace ID.
	TopicSpans = "metaflow.spans"
	// TopicFlows carries metaflow.agent.v1.ExportFlowsRequest messages, partitioned by
	// the two ends of a connection, so that the reports of both ends meet.
	TopicFlows = "metaflow.flows"
	// TopicDeadLetter carries records that could not be decoded or stored, each with its
	// cause in the headers below.
	TopicDeadLetter = "metaflow.dead-letter"
	// TopicControl carries the operators' changes to agent groups: one partition with one
	// metaflow.agent.v1.Command per record, kept forever. The order of its records is the
	// order of the changes.
	TopicControl = "metaflow.control"
	// TopicResources carries the state of agents and pods: one partition, compacted; the
	// key identifies the object.
	TopicResources = "metaflow.resources"
)

// Prefixes of the keys of TopicResources.
const (
	// KeyAgent precedes an agent's id. The value is a metaflow.agent.v1.AgentStatus.
	KeyAgent = "agent/"
	// KeyPod precedes a cluster, a slash and a pod's uid. The value is a
	// metaflow.agent.v1.Pod. Slashes and percent signs in a cluster's name are %2F and
	// %25.
	KeyPod = "pod/"
	// KeyService precedes a cluster, a slash, a namespace, a slash and a service's name.
	// The value is a metaflow.agent.v1.Service.
	KeyService = "service/"
	// KeyBinding precedes an agent's id. The value is the id's binding, JSON as read by
	// pkg/rpc/agentauth.
	KeyBinding = "agent-binding/"
)

// Headers of records of TopicSpans and TopicFlows. All are optional for readers: other
// programs' records have none of them.
const (
	// HeaderAgent is the id of the agent that delivered the request, as text.
	HeaderAgent = "metaflow-agent"
	// HeaderReceived is the time of first receipt, by an agent or by the gateway, against
	// which the times of spans and flows are checked: nanoseconds since the Unix epoch,
	// big-endian, 8 bytes.
	HeaderReceived = "metaflow-received"
	// HeaderHash is the XXH3-128 hash of the record's value before spans were omitted for
	// their times, big-endian, 16 bytes.
	HeaderHash = "metaflow-hash"
	// HeaderResend is present, with the value "1", if the sender may have delivered the
	// same spans or flows before.
	HeaderResend = "metaflow-resend"
)

// Additional headers of records of TopicDeadLetter, which also keep the headers of the
// original record. All values are text.
const (
	HeaderCause     = "metaflow-cause"     // why the record was diverted
	HeaderTopic     = "metaflow-topic"     // topic of the original record
	HeaderPartition = "metaflow-partition" // decimal
	HeaderOffset    = "metaflow-offset"    // decimal
	// HeaderTruncated is present if the value was too large for Kafka and is omitted: its
	// size in bytes, decimal.
	HeaderTruncated = "metaflow-truncated"
	// HeaderHandled makes the record no letter but a mark: the letters that its value lists were
	// replayed or dropped, as the header says.
	HeaderHandled = "metaflow-handled"
)

// gRPC metadata keys that an agent adds to TraceService/Export and FlowService/ExportFlows.
const (
	// MetadataAgent is the agent's id.
	MetadataAgent = "metaflow-agent"
	// MetadataResend is "1" if this request may have been delivered before.
	MetadataResend = "metaflow-resend"
	// MetadataSecret is a secret that the agent generates at its first start.
	MetadataSecret = "metaflow-secret"
	// MetadataToken is the token that the installation gives to its agents.
	MetadataToken = "metaflow-token"
	// MetadataReceived is when the agent received the request from its sender:
	// nanoseconds since the Unix epoch, decimal.
	MetadataReceived = "metaflow-received"
)

// Fields of the google.rpc.ErrorInfo in the status of a refused TraceService/Export or
// FlowService/ExportFlows.
const (
	ErrorDomain = "metaflow"
	// ReasonAtLimit means that the server refused the request because of its bounds in
	// flight, before it stored any of it.
	ReasonAtLimit = "AT_LIMIT"
)
