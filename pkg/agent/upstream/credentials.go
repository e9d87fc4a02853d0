package upstream

import (
	"context"
	"net"

	"google.golang.org/grpc/credentials"

	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
)

// reloading is TLS that uses the certificates current when a connection is
// made. The embedded credentials serve everything that is not specific to one
// connection.
type reloading struct {
	credentials.TransportCredentials
	source *tlsconfig.Source
}

func (r *reloading) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cfg := r.source.Config()
	if cfg.ServerName != "" {
		authority = cfg.ServerName
	}
	return credentials.NewTLS(cfg).ClientHandshake(ctx, authority, raw)
}

func (r *reloading) Clone() credentials.TransportCredentials {
	return &reloading{TransportCredentials: r.TransportCredentials.Clone(), source: r.source}
}
