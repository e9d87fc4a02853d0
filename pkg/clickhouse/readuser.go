package clickhouse

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/ClickHouse/ch-go/proto"
)

// ErrNoAccessManagement means that ClickHouse lets this program's user make no users:
// access management is off, or the user lacks the rights.
var ErrNoAccessManagement = errors.New("clickhouse does not let this user manage users")

// readQueriesPerMinute allows a hundred queries a second, each as long as ReadLimits allow.
// ClickHouse does not count those that read system tables only.
const readQueriesPerMinute = 6000

// EnsureReadUser creates the user of a Reader, or changes it to what it should be: it may
// only read the database, within limits and a quota of its name. An administrator may change
// the quota. The error wraps ErrNoAccessManagement if an operator has to do it.
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
	// 0 means no limit, so it must be out of range.
	may := fmt.Sprintf("SETTINGS max_execution_time = %g MIN 0.001 MAX %[1]g, max_memory_usage = %[2]d MIN 1 MAX %[2]d, allow_ddl = 0", limits.Time.Seconds(), limits.MemoryBytes)
	who := identified(password)
	return []string{
		fmt.Sprintf("CREATE USER IF NOT EXISTS %s%s %s %s", name, on, who, may),
		fmt.Sprintf("ALTER USER %s%s %s %s", name, on, who, may),
		fmt.Sprintf("GRANT%s SELECT ON %s.* TO %s", on, d.cfg.Database, name),
		fmt.Sprintf("CREATE QUOTA IF NOT EXISTS %s%s FOR INTERVAL 1 minute MAX queries = %d TO %[1]s", name, on, readQueriesPerMinute),
		// The quota outlives a user who is dropped and created again.
		fmt.Sprintf("ALTER QUOTA %s%s TO %[1]s", name, on),
	}
}

// identified returns how ClickHouse knows a user. It holds no password, because Keeper keeps
// the text of a statement with ON CLUSTER.
func identified(password string) string {
	if password == "" {
		return "IDENTIFIED WITH no_password"
	}
	salt := rand.Text()
	hash := sha256.Sum256([]byte(password + salt))
	return fmt.Sprintf("IDENTIFIED WITH sha256_hash BY '%s' SALT '%s'", hex.EncodeToString(hash[:]), salt)
}

// quoteIdentifier returns a name as ClickHouse reads it, whatever its characters.
func quoteIdentifier(name string) string {
	return "`" + strings.NewReplacer(`\`, `\\`, "`", "\\`").Replace(name) + "`"
}
