package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/ClickHouse/ch-go/proto"
)

// ErrNoAccessManagement means that ClickHouse lets this program's user make no users:
// access management is off, or the user lacks the rights.
var ErrNoAccessManagement = errors.New("clickhouse does not let this user manage users")

// readQuota is the name of the quota of the user that reads.
const readQuota = "metaflow_query"

// readQuota allows a hundred queries a second, each as long as ReadLimits allow.
const readQueriesPerMinute = 6000

// EnsureReadUser creates the user of a Reader, or changes it to what it should be: it may
// only read the database, within limits and a quota. The error wraps
// ErrNoAccessManagement if an operator has to do it.
func (d *DB) EnsureReadUser(ctx context.Context, user, password string, limits ReadLimits) error {
	for _, statement := range d.readUserStatements(user, password, limits) {
		if err := d.exec(ctx, statement); err != nil {
			switch code, _, _ := exception(err); code {
			case proto.ErrAccessStorageReadonly, proto.ErrAccessDenied, proto.ErrAccessStorageForInsertionNotFound:
				err = errors.Join(ErrNoAccessManagement, err)
			default:
			}
			return fmt.Errorf("create the user %s: %w", user, err)
		}
	}
	return nil
}

func (d *DB) readUserStatements(user, password string, limits ReadLimits) []string {
	on := d.params(Retention{}).OnCluster()
	name := quoteIdentifier(user)
	may := fmt.Sprintf("SETTINGS max_execution_time = %g MAX %[1]g, max_memory_usage = %[2]d MAX %[2]d, allow_ddl = 0", limits.Time.Seconds(), limits.MemoryBytes)
	secret := "IDENTIFIED WITH no_password"
	if password != "" {
		secret = "IDENTIFIED WITH sha256_password BY " + quote(password)
	}
	return []string{
		fmt.Sprintf("CREATE USER IF NOT EXISTS %s%s %s %s", name, on, secret, may),
		fmt.Sprintf("ALTER USER %s%s %s %s", name, on, secret, may),
		fmt.Sprintf("GRANT%s SELECT ON %s.* TO %s", on, d.cfg.Database, name),
		fmt.Sprintf("CREATE QUOTA IF NOT EXISTS %s%s FOR INTERVAL 1 minute MAX queries = %d TO %s", readQuota, on, readQueriesPerMinute, name),
	}
}

// quoteIdentifier returns a name as ClickHouse reads it, whatever its characters.
func quoteIdentifier(name string) string {
	return "`" + strings.NewReplacer(`\`, `\\`, "`", "\\`").Replace(name) + "`"
}
