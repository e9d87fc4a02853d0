package chain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/metaflowys/metaflow-server/integration/bench/measured"
)

// Profile saves a CPU profile and the heap's growth of a role's next seconds in dir, as
// soon as the program serves profiles at ops. It returns at once.
func Profile(ctx context.Context, dir, ops, role string, seconds int) {
	for name, path := range map[string]string{"cpu": "profile", "heap": "heap"} {
		go func() {
			url := fmt.Sprintf("http://%s/debug/pprof/%s?seconds=%d", ops, path, seconds)
			if err := save(ctx, url, filepath.Join(dir, role+"."+name+".pprof")); err != nil {
				measured.Progress("profile of the %s: %v", role, err)
			}
		}()
	}
}

// save fetches url into a file, as soon as it responds.
func save(ctx context.Context, url, file string) error {
	for {
		out, err := os.Create(file)
		if err != nil {
			return err
		}
		err = errors.Join(Get(ctx, url, out), out.Close())
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}
