package semconv

// The protocols this package names by itself. They are handed out as results
// and so must never be written to.
var (
	protocolHTTP    = []byte("http")
	protocolGRPC    = []byte("grpc")
	protocolGraphQL = []byte("graphql")
	protocolFaaS    = []byte("faas")
)

// protocolAliases lists the other spellings of a protocol, in lower case,
// under the word that the column shows: the one in common use, without
// vendor, which in most cases is what the conventions said first.
//
// Sources: the well-known values of db.system up to 1.29 and of db.system.name
// since 1.30, rpc.system and rpc.system.name, messaging.system, and spellings
// seen in instrumentations that follow neither.
var protocolAliases = []struct {
	word    string
	aliases []string
}{
	{"http", []string{"https"}},
	{"dubbo", []string{"apache_dubbo", "apache-dubbo"}},
	{"connect", []string{"connect_rpc", "connectrpc"}},
	{"jsonrpc", []string{"json-rpc", "json_rpc"}},
	{"wcf", []string{"dotnet_wcf"}},
	{"rmi", []string{"java_rmi"}},

	{"postgresql", []string{"postgres", "pgsql"}},
	{"mssql", []string{"microsoft.sql_server", "sqlserver", "sql_server", "mssqlcompact"}},
	{"oracle", []string{"oracle.db"}},
	{"mongodb", []string{"mongo"}},
	{"dynamodb", []string{"aws.dynamodb"}},
	{"redshift", []string{"aws.redshift"}},
	{"cosmosdb", []string{"azure.cosmosdb"}},
	{"spanner", []string{"gcp.spanner"}},
	{"db2", []string{"ibm.db2"}},
	{"informix", []string{"ibm.informix"}},
	{"netezza", []string{"ibm.netezza"}},
	{"hana", []string{"hanadb", "sap.hana"}},
	{"maxdb", []string{"sap.maxdb"}},
	{"ingres", []string{"actian.ingres"}},
	{"adabas", []string{"softwareag.adabas"}},
	{"firebird", []string{"firebirdsql"}},
	{"h2", []string{"h2database"}},
	{"cache", []string{"intersystems.cache"}},

	{"sqs", []string{"aws_sqs", "aws.sqs", "amazonsqs"}},
	{"sns", []string{"aws_sns", "aws.sns", "amazonsns"}},
	{"pubsub", []string{"gcp_pubsub"}},
}

// longestProtocol bounds the words of the protocol column. The longest
// well-known value has 20 characters.
const longestProtocol = 32

var protocolByAlias = func() map[string][]byte {
	m := make(map[string][]byte)
	for _, p := range protocolAliases {
		for _, alias := range p.aliases {
			m[alias] = []byte(p.word)
		}
	}
	return m
}()

// protocolWord writes value in lower case into word and returns it, or the
// word it is an alias of. What cannot be a protocol's name gives nil.
func protocolWord(word *[longestProtocol]byte, value []byte) []byte {
	if len(value) > len(word) {
		return nil
	}
	for i, c := range value {
		switch {
		case c >= 'A' && c <= 'Z':
			c += 'a' - 'A'
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		case c == '.', c == '_', c == '-', c == '+', c == '/':
		default:
			return nil
		}
		word[i] = c
	}
	lower := word[:len(value)]
	if canonical, ok := protocolByAlias[string(lower)]; ok {
		return canonical
	}
	return lower
}
