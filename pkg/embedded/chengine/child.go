package chengine

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/ebitengine/purego"
)

// childVariable is the environment variable with the library's path, set for the copy of
// this program that becomes the engine.
const childVariable = "METAFLOW_ENGINE_CHILD"

// hooked records that this program called MaybeRunChild. Otherwise a copy would run the
// whole program instead of the engine, and start further copies.
var hooked bool

// MaybeRunChild turns the process into the engine and does not return, if [Start] in
// another copy of this program asked for it. Call it first in main, and first in TestMain
// of packages whose tests start an engine.
func MaybeRunChild() {
	hooked = true
	library := os.Getenv(childVariable)
	if library == "" {
		return
	}
	if err := runLibrary(library, os.Args); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1) //nolint:forbidigo // this process is the engine, main never runs
	}
	os.Exit(0) //nolint:forbidigo // as above
}

// runLibrary calls clickhouse-local's main with args and returns when it has ended, after
// standard input has. Its errors are on standard error.
func runLibrary(library string, args []string) error {
	handle, err := purego.Dlopen(library, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return fmt.Errorf("load engine library: %w", err)
	}
	const entry = "chdb_query_cmdline"
	if _, err := purego.Dlsym(handle, entry); err != nil {
		return fmt.Errorf("load engine library: %s has no %s", library, entry)
	}
	var queryCmdline func(argc int32, argv unsafe.Pointer) uintptr
	purego.RegisterLibFunc(&queryCmdline, handle, entry)

	argv := make([]*byte, len(args)+1) // nil-terminated, as in C
	var pin runtime.Pinner
	defer pin.Unpin()
	for i, arg := range args {
		argv[i] = unsafe.SliceData(append([]byte(arg), 0))
		pin.Pin(argv[i])
	}
	pin.Pin(&argv[0])
	queryCmdline(int32(len(args)), unsafe.Pointer(&argv[0]))
	return nil
}
