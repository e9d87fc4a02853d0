package semconv

import "encoding/binary"

// Key stands for one attribute name that this package reads. The zero Key
// stands for every name that it does not.
type Key uint8

// The order is meaningful: a run of keys that answer the same question is
// listed in order of precedence, and pick reads such a run from first to last.
const (
	keyUnknown Key = iota

	keyHTTPRequestMethod
	keyHTTPMethod
	keyHTTPRequestMethodOriginal
	keyHTTPResponseStatusCode
	keyHTTPStatusCode
	keyHTTPRoute
	keyURLTemplate
	keyURLPath
	keyHTTPTarget
	keyURLFull
	keyHTTPURL
	keyHTTPScheme
	keyURLScheme
	keyHTTPFlavor
	keyHTTPHost
	keyHTTPClientIP

	keyRPCSystemName
	keyRPCSystem
	keyRPCService
	keyRPCMethod
	keyGRPCMethod
	keyGRPCPath
	keyRPCResponseStatusCode
	keyRPCGRPCStatusCode
	keyGRPCStatusCode
	keyRPCConnectErrorCode
	keyRPCJSONRPCErrorCode

	keyDBSystemName
	keyDBSystem
	keyDBOperationName
	keyDBOperation
	keyDBCosmosOperationType
	keyDBQuerySummary
	keyDBQueryText
	keyDBStatement
	keyDBCollectionName
	keyDBSQLTable
	keyDBMongoCollection
	keyDBCassandraTable
	keyDBCosmosContainer
	keyDBStoredProcedureName
	keyDBNamespace
	keyDBCassandraKeyspace
	keyDBHBaseNamespace
	keyDBName
	keyDBRedisIndex
	keyDBResponseStatusCode
	keyDBCosmosStatusCode

	keyMessagingSystem
	keyMessagingProtocol
	keyMessagingOperationType
	keyMessagingOperation
	keyMessagingOperationName
	keyMessagingDestinationTemplate
	keyMessagingDestinationName
	keyMessagingDestination
	keyMessagingSourceName
	keyMessagingDestinationPublishName
	keyMessagingURL
	keyMessagingDestinationTemporary
	keyMessagingTempDestination
	keyMessagingDestinationAnonymous

	keyGraphQLOperationName
	keyGraphQLOperationType
	keyFaaSTrigger
	keyFaaSInvokedName

	keyNetworkProtocolName
	keyNetProtocolName
	keyNetAppProtocolName
	keyErrorType

	keyNetworkPeerAddress
	keyNetworkPeerPort
	keyNetworkLocalAddress
	keyNetworkLocalPort
	keyNetSockPeerAddr
	keyNetSockPeerPort
	keyNetSockHostAddr
	keyNetSockHostPort
	keyNetPeerIP
	keyNetPeerName
	keyNetPeerPort
	keyNetHostIP
	keyNetHostName
	keyNetHostPort
	keyServerAddress
	keyServerPort
	keyServerSocketAddress
	keyServerSocketPort
	keyClientAddress
	keyClientPort
	keyClientSocketAddress
	keyClientSocketPort
	keySourceAddress
	keySourcePort
	keyDestinationAddress
	keyDestinationPort
	keyPeerAddress
	keyPeerIPv4
	keyPeerIPv6
	keyPeerPort
	keyUpstreamAddress
	keyUpstreamCluster
	keyUpstreamClusterName

	keyServiceName
	keyServiceNamespace
	keyServiceInstanceID
	keyClusterName
	keyClusterUID
	keyNamespaceName
	keyPodName
	keyPodUID
	keyPodIP
	keyNodeName
	keyHostName
	keyHostIP
	keyAppHostIP
	keyDeployment
	keyStatefulSet
	keyDaemonSet
	keyCronJob
	keyJob
	keyReplicaSet
	keyReplicationController

	keyCount
)

// known gives each Key its attribute name and what the presence of the
// attribute on a span is evidence of.
var known = [keyCount]struct {
	name     string
	evidence evidence
}{
	keyHTTPRequestMethod:         {"http.request.method", familyHTTP.defining()},
	keyHTTPMethod:                {"http.method", familyHTTP.defining()},
	keyHTTPRequestMethodOriginal: {"http.request.method_original", familyHTTP.related()},
	keyHTTPResponseStatusCode:    {"http.response.status_code", familyHTTP.defining()},
	keyHTTPStatusCode:            {"http.status_code", familyHTTP.defining()},
	keyHTTPRoute:                 {"http.route", familyHTTP.defining()},
	keyURLTemplate:               {"url.template", familyHTTP.related()},
	keyURLPath:                   {"url.path", familyHTTP.related()},
	keyHTTPTarget:                {"http.target", familyHTTP.defining()},
	keyURLFull:                   {"url.full", familyHTTP.related()},
	keyHTTPURL:                   {"http.url", familyHTTP.defining()},
	keyHTTPScheme:                {"http.scheme", familyHTTP.defining()},
	keyURLScheme:                 {"url.scheme", familyHTTP.related()},
	keyHTTPFlavor:                {"http.flavor", familyHTTP.defining()},
	keyHTTPHost:                  {"http.host", familyHTTP.defining()},
	keyHTTPClientIP:              {"http.client_ip", familyHTTP.related()},

	keyRPCSystemName:         {"rpc.system.name", familyRPC.defining()},
	keyRPCSystem:             {"rpc.system", familyRPC.defining()},
	keyRPCService:            {"rpc.service", familyRPC.related()},
	keyRPCMethod:             {"rpc.method", familyRPC.related()},
	keyGRPCMethod:            {"grpc.method", familyRPC.defining()},
	keyGRPCPath:              {"grpc.path", familyRPC.defining()},
	keyRPCResponseStatusCode: {"rpc.response.status_code", familyRPC.related()},
	keyRPCGRPCStatusCode:     {"rpc.grpc.status_code", familyRPC.defining()},
	keyGRPCStatusCode:        {"grpc.status_code", familyRPC.defining()},
	keyRPCConnectErrorCode:   {"rpc.connect_rpc.error_code", familyRPC.related()},
	keyRPCJSONRPCErrorCode:   {"rpc.jsonrpc.error_code", familyRPC.related()},

	keyDBSystemName:          {"db.system.name", familyDatabase.defining()},
	keyDBSystem:              {"db.system", familyDatabase.defining()},
	keyDBOperationName:       {"db.operation.name", familyDatabase.related()},
	keyDBOperation:           {"db.operation", familyDatabase.related()},
	keyDBCosmosOperationType: {"db.cosmosdb.operation_type", familyDatabase.related()},
	keyDBQuerySummary:        {"db.query.summary", familyDatabase.related()},
	keyDBQueryText:           {"db.query.text", familyDatabase.related()},
	keyDBStatement:           {"db.statement", familyDatabase.related()},
	keyDBCollectionName:      {"db.collection.name", familyDatabase.related()},
	keyDBSQLTable:            {"db.sql.table", familyDatabase.related()},
	keyDBMongoCollection:     {"db.mongodb.collection", familyDatabase.related()},
	keyDBCassandraTable:      {"db.cassandra.table", familyDatabase.related()},
	keyDBCosmosContainer:     {"db.cosmosdb.container", familyDatabase.related()},
	keyDBStoredProcedureName: {"db.stored_procedure.name", familyDatabase.related()},
	keyDBNamespace:           {"db.namespace", familyDatabase.related()},
	keyDBCassandraKeyspace:   {"db.cassandra.keyspace", familyDatabase.related()},
	keyDBHBaseNamespace:      {"db.hbase.namespace", familyDatabase.related()},
	keyDBName:                {"db.name", familyDatabase.related()},
	keyDBRedisIndex:          {"db.redis.database_index", familyDatabase.related()},
	keyDBResponseStatusCode:  {"db.response.status_code", familyDatabase.related()},
	keyDBCosmosStatusCode:    {"db.cosmosdb.status_code", familyDatabase.related()},

	keyMessagingSystem:                 {"messaging.system", familyMessaging.defining()},
	keyMessagingProtocol:               {"messaging.protocol", familyMessaging.related()},
	keyMessagingOperationType:          {"messaging.operation.type", familyMessaging.related()},
	keyMessagingOperation:              {"messaging.operation", familyMessaging.related()},
	keyMessagingOperationName:          {"messaging.operation.name", familyMessaging.related()},
	keyMessagingDestinationTemplate:    {"messaging.destination.template", familyMessaging.related()},
	keyMessagingDestinationName:        {"messaging.destination.name", familyMessaging.related()},
	keyMessagingDestination:            {"messaging.destination", familyMessaging.related()},
	keyMessagingSourceName:             {"messaging.source.name", familyMessaging.related()},
	keyMessagingDestinationPublishName: {"messaging.destination_publish.name", familyMessaging.related()},
	keyMessagingURL:                    {"messaging.url", familyMessaging.related()},
	keyMessagingDestinationTemporary:   {"messaging.destination.temporary", familyMessaging.related()},
	keyMessagingTempDestination:        {"messaging.temp_destination", familyMessaging.related()},
	keyMessagingDestinationAnonymous:   {"messaging.destination.anonymous", familyMessaging.related()},

	keyGraphQLOperationName: {"graphql.operation.name", familyGraphQL.defining()},
	keyGraphQLOperationType: {"graphql.operation.type", familyGraphQL.defining()},
	keyFaaSTrigger:          {"faas.trigger", familyFaaS.defining()},
	keyFaaSInvokedName:      {"faas.invoked_name", familyFaaS.defining()},

	keyNetworkProtocolName: {name: "network.protocol.name"},
	keyNetProtocolName:     {name: "net.protocol.name"},
	keyNetAppProtocolName:  {name: "net.app.protocol.name"},
	keyErrorType:           {name: "error.type"},

	keyNetworkPeerAddress:  {name: "network.peer.address"},
	keyNetworkPeerPort:     {name: "network.peer.port"},
	keyNetworkLocalAddress: {name: "network.local.address"},
	keyNetworkLocalPort:    {name: "network.local.port"},
	keyNetSockPeerAddr:     {name: "net.sock.peer.addr"},
	keyNetSockPeerPort:     {name: "net.sock.peer.port"},
	keyNetSockHostAddr:     {name: "net.sock.host.addr"},
	keyNetSockHostPort:     {name: "net.sock.host.port"},
	keyNetPeerIP:           {name: "net.peer.ip"},
	keyNetPeerName:         {name: "net.peer.name"},
	keyNetPeerPort:         {name: "net.peer.port"},
	keyNetHostIP:           {name: "net.host.ip"},
	keyNetHostName:         {name: "net.host.name"},
	keyNetHostPort:         {name: "net.host.port"},
	keyServerAddress:       {name: "server.address"},
	keyServerPort:          {name: "server.port"},
	keyServerSocketAddress: {name: "server.socket.address"},
	keyServerSocketPort:    {name: "server.socket.port"},
	keyClientAddress:       {name: "client.address"},
	keyClientPort:          {name: "client.port"},
	keyClientSocketAddress: {name: "client.socket.address"},
	keyClientSocketPort:    {name: "client.socket.port"},
	keySourceAddress:       {name: "source.address"},
	keySourcePort:          {name: "source.port"},
	keyDestinationAddress:  {name: "destination.address"},
	keyDestinationPort:     {name: "destination.port"},
	keyPeerAddress:         {name: "peer.address"},
	keyPeerIPv4:            {name: "peer.ipv4"},
	keyPeerIPv6:            {name: "peer.ipv6"},
	keyPeerPort:            {name: "peer.port"},
	keyUpstreamAddress:     {name: "upstream_address"},
	keyUpstreamCluster:     {name: "upstream_cluster"},
	keyUpstreamClusterName: {name: "upstream_cluster.name"},

	keyServiceName:           {name: "service.name"},
	keyServiceNamespace:      {name: "service.namespace"},
	keyServiceInstanceID:     {name: "service.instance.id"},
	keyClusterName:           {name: "k8s.cluster.name"},
	keyClusterUID:            {name: "k8s.cluster.uid"},
	keyNamespaceName:         {name: "k8s.namespace.name"},
	keyPodName:               {name: "k8s.pod.name"},
	keyPodUID:                {name: "k8s.pod.uid"},
	keyPodIP:                 {name: "k8s.pod.ip"},
	keyNodeName:              {name: "k8s.node.name"},
	keyHostName:              {name: "host.name"},
	keyHostIP:                {name: "host.ip"},
	keyAppHostIP:             {name: "app.host.ip"},
	keyDeployment:            {name: "k8s.deployment.name"},
	keyStatefulSet:           {name: "k8s.statefulset.name"},
	keyDaemonSet:             {name: "k8s.daemonset.name"},
	keyCronJob:               {name: "k8s.cronjob.name"},
	keyJob:                   {name: "k8s.job.name"},
	keyReplicaSet:            {name: "k8s.replicaset.name"},
	keyReplicationController: {name: "k8s.replicationcontroller.name"},
}

// lookupSlots is the size of the hash table over the known names: a power of
// two, four times their number, so that a name is found, or found unknown, with
// little more than one probe. Measured against a switch over all names, which
// the compiler turns into a search by length and bytes, it takes 8 instead of 5 ns
// for a known name and 4 instead of 6 ns for an unknown one, and the names are
// written once.
const lookupSlots = 512

// shortestName is the length of "host.ip", below which no name is known. It
// lets the hash load whole words without looking at the length again.
const shortestName = 7

var lookupTable = buildLookupTable()

func buildLookupTable() (table [lookupSlots]Key) {
	for k := keyUnknown + 1; k < keyCount; k++ {
		slot := hashName([]byte(known[k].name))
		for table[slot] != keyUnknown {
			slot = (slot + 1) % lookupSlots
		}
		table[slot] = k
	}
	return table
}

// hashName mixes the length with the first, middle and last four bytes: known
// names share their beginnings and many their ends, hardly any all three. The name
// must not be shorter than shortestName.
func hashName(name []byte) uint32 {
	n := len(name)
	first := binary.LittleEndian.Uint32(name)
	middle := binary.LittleEndian.Uint32(name[n/2-1:])
	last := binary.LittleEndian.Uint32(name[n-4:])
	h := first*0x9e3779b1 ^ middle*0x85ebca77 ^ last*0xc2b2ae3d ^ uint32(n)*0x27d4eb2f
	return h >> 15 % lookupSlots
}

// Lookup returns the Key of an attribute name. It does not allocate, and the
// answer for a name never changes, so it may be cached.
func Lookup(name []byte) Key {
	if len(name) < shortestName {
		return keyUnknown
	}
	for slot := hashName(name); ; slot = (slot + 1) % lookupSlots {
		k := lookupTable[slot]
		if k == keyUnknown || known[k].name == string(name) {
			return k
		}
	}
}
