package semconv

var (
	operationSend        = []byte("send")
	destinationTemporary = []byte("(temporary)")
	destinationAnonymous = []byte("(anonymous)")
)

// resolveMessaging follows the conventions for messaging spans, which changed
// in 1.17 (destination.name) and in 1.26 (operation.type and operation.name).
func (s *Span) resolveMessaging(kind Kind) {
	a := &s.attributes
	s.Protocol = s.protocol(a.pick(keyMessagingSystem, keyMessagingProtocol))
	s.Method = a.pick(keyMessagingOperationType, keyMessagingOperationName)
	if s.Method == nil && kind == Producer {
		s.Method = operationSend
	}
	s.Endpoint = s.messagingEndpoint()
}

// messagingEndpoint keeps out names that were made up for one conversation: the
// conventions replace them by these very words in span names.
func (s *Span) messagingEndpoint() []byte {
	a := &s.attributes
	switch {
	case a.has(keyMessagingDestinationTemplate):
		return a.values[keyMessagingDestinationTemplate]
	case string(a.pick(keyMessagingDestinationTemporary, keyMessagingTempDestination)) == "true":
		return destinationTemporary
	case string(a.values[keyMessagingDestinationAnonymous]) == "true":
		return destinationAnonymous
	}
	if name := a.pick(keyMessagingDestinationName, keyMessagingDestinationPublishName); name != nil {
		return name
	}
	return splitURL(a.values[keyMessagingURL]).path
}
