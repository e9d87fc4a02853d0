package chengine_test

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/testkit/chtest"
)

// runFakeServer stands in for `clickhouse server`: it reads its configuration, responds
// with the name in it, and ends only on SIGTERM.
func runFakeServer(args []string) error {
	if len(args) != 3 || args[1] != "server" {
		return fmt.Errorf("arguments are %q", args)
	}
	text, err := os.ReadFile(strings.TrimPrefix(args[2], "--config-file="))
	if err != nil {
		return err
	}
	var config struct {
		Name string `xml:"display_name"`
		Host string `xml:"listen_host"`
		Port int    `xml:"http_port"`
		Path string `xml:"path"`
	}
	if err := xml.Unmarshal(text, &config); err != nil {
		return err
	}
	if config.Path == "" {
		return errors.New("the configuration has no path")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	answer := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, config.Name) }
	server := &http.Server{Addr: config.Host + ":" + strconv.Itoa(config.Port), Handler: http.HandlerFunc(answer)}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// A clickhouse on the PATH takes precedence over the library, and stops by SIGTERM.
func TestBinaryOnPathServes(t *testing.T) {
	t.Setenv(chengine.LibraryVariable, "")
	bin := t.TempDir()
	if err := os.Symlink(mustExecutable(t), filepath.Join(bin, "clickhouse")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	t.Setenv(fakeServerVariable, "1")

	e := chtest.Start(t, chengine.Options{})
	chtest.Stop(t, e)
}

func TestNothingToRun(t *testing.T) {
	t.Setenv(chengine.LibraryVariable, "")
	t.Setenv("PATH", t.TempDir())
	t.Chdir(t.TempDir())
	_, err := chengine.Start(t.Context(), chengine.Options{DataDir: t.TempDir()})
	if !errors.Is(err, chengine.ErrNoEngine) {
		t.Errorf("Start = %v, want ErrNoEngine", err)
	}
}

func mustExecutable(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}
