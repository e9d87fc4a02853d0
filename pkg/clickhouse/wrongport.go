package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/proto"
)

// wrongPortTimeout bounds the question whether a port is the HTTP port: it is asked after a
// failure, of a program that accepts connections.
const wrongPortTimeout = time.Second

// explain adds to an error of a login what is wrong, if one of the addresses is ClickHouse's
// HTTP port. That port waits for a line of text and never answers a login.
func explain(ctx context.Context, addresses []string, err error) error {
	var op *net.OpError
	if _, _, answered := exception(err); answered || errors.As(err, &op) && op.Op == "dial" {
		return err
	}
	for _, addr := range addresses {
		if isHTTPPort(ctx, addr) {
			return fmt.Errorf("%s is ClickHouse's HTTP port; the native port is usually 9000: %w", addr, err)
		}
	}
	return err
}

// isHTTPPort asks as HTTP's monitors do. The native port answers with status 400.
func isHTTPPort(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wrongPortTimeout)
	defer cancel()
	conn, err := dialWire(ctx, addr, nil)
	if err != nil {
		return false
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	if _, err := io.WriteString(conn, "GET /ping HTTP/1.0\r\nHost: localhost\r\n\r\n"); err != nil {
		return false
	}
	const enough = 4 << 10
	answer, _ := io.ReadAll(io.LimitReader(conn, enough))
	status, _, _ := strings.Cut(string(answer), "\r\n")
	return strings.HasPrefix(status, "HTTP/1.") && strings.Contains(status, " 200 ") && strings.HasSuffix(strings.TrimSpace(string(answer)), "Ok.")
}

// IsLoginRefused reports whether ClickHouse answered that the user or the password is wrong.
func IsLoginRefused(err error) bool {
	code, _, ok := exception(err)
	return ok && (code == proto.ErrAuthenticationFailed || code == proto.ErrUnknownUser || code == proto.ErrWrongPassword)
}
