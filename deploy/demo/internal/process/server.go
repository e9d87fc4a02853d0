package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Endpoints is the content of a standalone server's ready file: host:port of
// each endpoint.
type Endpoints struct {
	GRPC             string `json:"grpc"`
	HTTP             string `json:"http"`
	QueryHTTP        string `json:"query_http"`
	QueryGRPC        string `json:"query_grpc"`
	Kafka            string `json:"kafka"`
	ClickHouseNative string `json:"clickhouse_native"`
	ClickHouseHTTP   string `json:"clickhouse_http"`
}

// Server is a MetaFlow server in standalone mode.
type Server struct {
	*Process
	ready string // the ready file
}

// StartServer runs the program on free ports of the loopback address, with its
// data in dir.
func StartServer(program, dir string) (*Server, error) {
	ready := filepath.Join(dir, "ready.json")
	p, err := Start("the server", nil, program, "standalone",
		"--data-dir", filepath.Join(dir, "data"),
		"--grpc-listen", "127.0.0.1:0",
		"--otlp-http-listen", "127.0.0.1:0",
		"--http-listen", "127.0.0.1:0",
		"--query-http-listen", "127.0.0.1:0",
		"--query-grpc-listen", "127.0.0.1:0",
		"--kafka-listen", "127.0.0.1:0",
		"--clickhouse-native-port", "0",
		"--clickhouse-http-port", "0",
		"--ready-file", ready,
	)
	return &Server{p, ready}, err
}

// AwaitReady waits until the server listens and returns its endpoints.
func (s *Server) AwaitReady(ctx context.Context) (at Endpoints, err error) {
	err = s.Await(ctx, func() (bool, error) {
		at, err = readEndpoints(s.ready)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return true, err
	})
	return at, err
}

func readEndpoints(path string) (e Endpoints, err error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return e, err
	}
	if err := json.Unmarshal(content, &e); err != nil {
		return e, fmt.Errorf("read the server's ready file: %w", err)
	}
	if e.GRPC == "" || e.ClickHouseNative == "" {
		return e, fmt.Errorf("read the server's ready file: no grpc or no clickhouse_native address in %s", content)
	}
	return e, nil
}
