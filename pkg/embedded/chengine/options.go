package chengine

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// defaultMaxMemoryBytes is the default memory limit: enough for merges and queries of a
// demo or a test, next to other programs on a laptop.
const defaultMaxMemoryBytes = 2 << 30

// startTimeout bounds the start of an engine. A start takes 0.3 s; the rest is for a cold
// disk, a busy machine and a data directory with many parts.
const startTimeout = 30 * time.Second

// Options are set by code. DataDir is required.
type Options struct {
	// DataDir holds the tables. It is created if missing. A second engine on it is
	// refused.
	DataDir string
	// NativePort and HTTPPort are bound on 127.0.0.1; 0 picks free ones.
	NativePort, HTTPPort int
	// Library is the path of libchdb.so. If empty, Start searches as described in the
	// package doc.
	Library string
	// MaxMemoryBytes bounds the server's allocations. A query that exceeds it fails; the
	// server continues. 0 means 2 GiB.
	MaxMemoryBytes int64
	// ExtraConfig is XML that is inserted into the server's configuration unchanged, such
	// as <remote_servers> and <macros>.
	ExtraConfig string
	// LogFile receives the server's standard error, stack traces of failed queries
	// included. It is created if missing; at 16 MiB it is renamed to LogFile.old. If
	// empty, Logger receives it.
	LogFile string
	// Logger receives restarts and their causes. Nil discards.
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
