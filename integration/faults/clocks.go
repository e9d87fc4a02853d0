package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// clocks sets the wall clock of each program apart from the machine's. Monotonic clocks
// go on as they are.
//
//   - Go programs read the clock without libc, so nothing preloaded helps. They are
//     built with a standard library in which time.Now adds what a file says (an overlay
//     of the go command, so the product has no hook for it).
//   - ClickHouse runs under libfaketime, where it is installed.
//   - The clocks of Apache Kafka are left alone: under libfaketime three brokers elected
//     no controller on a busy machine.
type clocks struct {
	dir     string
	library string // libfaketime; empty where there is none
	overlay bool   // the Go programs were built with ours
}

// clockVariable names the file from which a Go program takes its offset in seconds.
const clockVariable = "FAULTS_CLOCK"

// newClocks returns the clocks of a run, which are kept in dir.
func newClocks(dir string) clocks {
	c := clocks{dir: dir}
	found, _ := filepath.Glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
	if len(found) > 0 {
		c.library = found[0]
	}
	return c
}

func (c clocks) file(program string) string { return filepath.Join(c.dir, program+".clock") }

// forGo returns the environment of a Go program.
func (c clocks) forGo(program string) []string {
	if !c.overlay {
		return nil
	}
	if _, err := os.Stat(c.file(program)); err != nil {
		_ = os.WriteFile(c.file(program), make([]byte, 8), 0o600)
	}
	return []string{clockVariable + "=" + c.file(program)}
}

// forC returns the environment of a program that uses libc.
func (c clocks) forC(program string) []string {
	if c.library == "" {
		return nil
	}
	if _, err := os.Stat(c.file(program)); err != nil {
		_ = os.WriteFile(c.file(program), []byte("+0s\n"), 0o600)
	}
	return []string{
		"LD_PRELOAD=" + c.library, "FAKETIME_TIMESTAMP_FILE=" + c.file(program),
		"FAKETIME_DONT_FAKE_MONOTONIC=1", "FAKETIME_CACHE_DURATION=1", "FAKETIME_NO_CACHE=0",
	}
}

// setGo moves the clock of a Go program; setC that of one that uses libc. Whole seconds.
func (c clocks) setGo(program string, offset time.Duration) error {
	f, err := os.OpenFile(c.file(program), os.O_WRONLY, 0) // in place: the program has mapped it
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(offset/time.Second)), 0)
	return err
}

func (c clocks) setC(program string, offset time.Duration) error {
	next := c.file(program) + ".next"
	if err := os.WriteFile(next, fmt.Appendf(nil, "%+ds\n", int(offset/time.Second)), 0o600); err != nil {
		return err
	}
	return os.Rename(next, c.file(program))
}

// skewSource is added to package time.
const skewSource = `package time

import (
	"syscall"
	"unsafe"
)

// skew is the offset of this program's wall clock in seconds.
var skew = mapSkew()

func mapSkew() *int64 {
	path, ok := syscall.Getenv("` + clockVariable + `")
	if !ok {
		return new(int64)
	}
	fd, err := syscall.Open(path, syscall.O_RDONLY, 0)
	if err != nil {
		panic(err)
	}
	b, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic(err)
	}
	return (*int64)(unsafe.Pointer(&b[0]))
}
`

// writeOverlay writes what `go build -overlay` needs for a time.Now with an offset, and
// returns the file for it.
func writeOverlay(dir string) (string, error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("go env: %w", err)
	}
	std := filepath.Join(strings.TrimSpace(string(out)), "src", "time")
	source, err := os.ReadFile(filepath.Join(std, "time.go"))
	if err != nil {
		return "", err
	}
	const now = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	const skewed = now + "\tif skew != nil {\n\t\tsec += *skew\n\t}\n"
	changed := strings.Replace(string(source), now, skewed, 1)
	if changed == string(source) {
		return "", fmt.Errorf("time.Now of this version of Go has another form")
	}
	replace := map[string]string{
		filepath.Join(std, "time.go"): filepath.Join(dir, "time.go.txt"),
		filepath.Join(std, "skew.go"): filepath.Join(dir, "skew.go.txt"),
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(dir, "overlay.json")
	for path, content := range map[string]string{
		replace[filepath.Join(std, "time.go")]: changed,
		replace[filepath.Join(std, "skew.go")]: skewSource,
		overlay:                                string(text),
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return "", err
		}
	}
	return overlay, nil
}
