// Command metaflow-ctl controls agents through the API of metaflow-server. It is also
// installed as metaflow-cli.
package main

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
)

func main() {
	root := newRoot(filepath.Base(os.Args[0]), environment{variables: os.Environ(), now: time.Now})
	os.Exit(program.Run(context.Background(), root, os.Args[1:], os.Stdout, os.Stderr))
}
