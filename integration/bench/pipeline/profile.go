package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/metaflowys/metaflow-server/integration/bench/chain"
	"github.com/metaflowys/metaflow-server/integration/bench/measured"
)

// profile saves a CPU profile of a role's first seconds, and then its heap
// profile.
func (b *bench) profile(ctx context.Context, addr, role string) {
	for name, path := range map[string]string{"cpu": "profile?seconds=4", "heap": "heap?seconds=4"} {
		go func() {
			if err := save(ctx, "http://"+addr+"/debug/pprof/"+path, filepath.Join(b.profiles, role+"."+name+".pprof")); err != nil {
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
		err = errors.Join(chain.Get(ctx, url, out), out.Close())
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
