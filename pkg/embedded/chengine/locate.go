package chengine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// libraryVersion is the npm package version that deploy/engine/fetch.sh pins.
const libraryVersion = "26.7.3-stable.1"

// LibraryVariable is the environment variable with the library's path.
const LibraryVariable = "METAFLOW_CHDB_LIBRARY"

// ErrNoEngine means that there is neither a library nor a clickhouse binary.
var ErrNoEngine = errors.New("no clickhouse engine found: run `make engine`, or put a clickhouse binary on the PATH, or name a libchdb.so in " + LibraryVariable)

// program is the engine to run; exactly one field is set.
type program struct {
	library string // libchdb.so, loaded by a copy of this program
	binary  string // a clickhouse executable
}

// locate finds the engine. If a library was requested by path and is missing, that is an
// error; locate does not fall back to another engine.
func locate(library string) (program, error) {
	if library == "" {
		library = os.Getenv(LibraryVariable)
	}
	if library != "" {
		if err := checkLibrary(library); err != nil {
			return program{}, fmt.Errorf("open engine library: %w (run `make engine` to fetch it)", err)
		}
		return program{library: library}, nil
	}
	if binary, err := exec.LookPath("clickhouse"); err == nil {
		return program{binary: binary}, nil
	}
	for _, dir := range searchDirs() {
		path := filepath.Join(dir, ".cache", "chdb", libraryVersion, "libchdb.so")
		if checkLibrary(path) == nil {
			return program{library: path}, nil
		}
	}
	return program{}, ErrNoEngine
}

func checkLibrary(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", path)
	}
	return nil
}

// searchDirs returns the working directory and all of its parents (a test runs in its
// package's directory), and the parent of the executable's directory (bin/).
func searchDirs() []string {
	var dirs []string
	if dir, err := os.Getwd(); err == nil {
		for {
			dirs = append(dirs, dir)
			parent := filepath.Dir(dir)
			if parent == dir {
				break
			}
			dir = parent
		}
	}
	if exe, err := os.Executable(); err == nil {
		dirs = append(dirs, filepath.Dir(filepath.Dir(exe)))
	}
	return dirs
}
