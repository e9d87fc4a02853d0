package chengine

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// DefaultMaxMemoryBytes bounds the engine where Options does not: enough for
// merges and queries of a demo or a test beside other programs on a laptop.
const DefaultMaxMemoryBytes = 2 << 30

// startTimeout bounds how long an engine may take to answer. It takes 0.3 s;
// the rest is for a cold disk, a busy machine and a data directory with many parts.
const startTimeout = 30 * time.Second

// Options is what code and tests may choose. DataDir is required.
type Options struct {
	// DataDir holds the tables. It is created when missing and must belong to
	// one engine at a time: a second one is refused.
	DataDir string
	// NativePort and HTTPPort are listened on at 127.0.0.1; 0 picks free ones.
	NativePort, HTTPPort int
	// Library is the path of libchdb.so. Empty searches as the package doc says.
	Library string
	// MaxMemoryBytes bounds what the server allocates; a query over it fails,
	// the server lives. 0 means DefaultMaxMemoryBytes.
	MaxMemoryBytes int64
	// ExtraConfig is XML put into the server's configuration as it stands, such
	// as <remote_servers> and <macros>.
	ExtraConfig string
	// Logger receives what the server writes to its standard error. Nil discards it.
	Logger *slog.Logger
}

func (o Options) validate() error {
	var errs []error
	if o.DataDir == "" {
		errs = append(errs, errors.New("data directory is empty"))
	}
	for _, p := range []struct {
		name string
		port int
	}{{"native port", o.NativePort}, {"http port", o.HTTPPort}} {
		if p.port < 0 || p.port > 65535 {
			errs = append(errs, fmt.Errorf("%s: %d is not a port", p.name, p.port))
		}
	}
	if o.NativePort != 0 && o.NativePort == o.HTTPPort {
		errs = append(errs, fmt.Errorf("http port: %d is the native port", o.HTTPPort))
	}
	if o.MaxMemoryBytes < 0 {
		errs = append(errs, fmt.Errorf("memory limit: %d is negative", o.MaxMemoryBytes))
	}
	return errors.Join(errs...)
}
