package clickhouse

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// Whoever takes the HTTP port for the native port is told.
func TestHTTPPortIsNamed(t *testing.T) {
	cfg := testConfig(t)
	cfg.Addresses, cfg.DialTimeout = []string{engine.HTTPAddr()}, 2*time.Second
	d, err := Open(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	want := engine.HTTPAddr() + " is ClickHouse's HTTP port; the native port is usually 9000"
	if err := d.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Ping = %v, want %q", err, want)
	}
	for addr, want := range map[string]bool{engine.HTTPAddr(): true, engine.NativeAddr(): false} {
		if got := isHTTPPort(t.Context(), addr); got != want {
			t.Errorf("isHTTPPort(%s) = %t", addr, got)
		}
	}
}

func TestIsLoginRefused(t *testing.T) {
	for code, want := range map[proto.Error]bool{proto.ErrAuthenticationFailed: true, proto.ErrUnknownUser: true, proto.ErrTooManyParts: false} {
		err := readable(&ch.Exception{Code: code, Name: "DB::Exception", Message: "no"})
		if got := IsLoginRefused(fmt.Errorf("ping: %w", err)); got != want {
			t.Errorf("IsLoginRefused(%v) = %t", err, got)
		}
	}
	if IsLoginRefused(errors.New("connection refused")) {
		t.Error("a refused connection is taken for a refused login")
	}
}
