// Package parked stores the requests that an agent has acknowledged and its
// servers reject: a folder with one file per request, bounded in bytes, that an
// operator can inspect.
//
// A file is one line of JSON, the [Head], followed by the request's body, so
// `head -n 1` shows why it was parked. It appears atomically and is on stable
// storage when [Folder.Put] returns. Its name holds the time of parking, the
// kind and whether it waits, so these are found without opening files. Anyone
// may remove a file, and two processes may use the folder at a time.
//
// The package removes only requests that a caller names. It does not interpret
// bodies.
package parked

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ErrFull means that there is no room: the bound is reached or the disk is
// full.
var ErrFull = errors.New("folder of parked requests is full")

// Head describes a parked request and why it was parked.
type Head struct {
	Name     string    `json:"-"`               // of the file
	Size     int64     `json:"-"`               // of the file
	Signal   string    `json:"kind"`            // "spans" or "flows", stored data
	Items    int       `json:"items"`           // spans or flows in the body
	Refused  int64     `json:"refused"`         // the rejected ones among them; the others are stored
	Cause    string    `json:"cause"`           // the server's reply
	Waits    bool      `json:"waits,omitempty"` // the agent retries it
	Received time.Time `json:"received"`        // when the agent received it
	Parked   time.Time `json:"parked"`
	Encoding string    `json:"encoding"` // of the body, "zstd"
	Checksum uint32    `json:"crc32c"`   // of the body
}

// Folder is a directory of parked requests. Use Open. Its methods are safe for
// concurrent use.
type Folder struct {
	dir      string
	maxBytes int64

	mu    sync.Mutex // serializes Puts, so that the bound holds
	known usage
}

// usage is a count of the files and their size.
type usage struct {
	changed  time.Time // modification time of the directory
	counted  time.Time
	requests int
	size     int64
}

const (
	suffix     = ".parked"
	unfinished = ".new"
	maxHead    = 1 << 20 // the longest accepted first line
	maxCause   = 4 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Open opens the folder dir and creates it if it is missing. Put keeps its
// files within maxBytes.
func Open(dir string, maxBytes int64) (*Folder, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create folder of parked requests: %w", err)
	}
	return &Folder{dir: dir, maxBytes: maxBytes}, nil
}

// Dir returns the path of the folder.
func (f *Folder) Dir() string { return f.dir }

// MaxBytes returns the bound of the files' total size.
func (f *Folder) MaxBytes() int64 { return f.maxBytes }

// Put stores body with h. It sets the fields of h that describe the file, and
// Parked if it is zero. It returns ErrFull if the folder or the disk is full.
func (f *Folder) Put(h Head, body []byte) error {
	if h.Parked.IsZero() {
		h.Parked = time.Now()
	}
	h.Received, h.Parked = h.Received.UTC(), h.Parked.UTC()
	h.Cause = strings.ToValidUTF8(h.Cause[:min(len(h.Cause), maxCause)], "?")
	h.Checksum = crc32.Checksum(body, castagnoli)
	text, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("park request: %w", err)
	}
	text = append(text, '\n')

	f.mu.Lock()
	defer f.mu.Unlock()
	used, err := f.used()
	if err != nil {
		return fmt.Errorf("park request: %w", err)
	}
	size := int64(len(text) + len(body))
	if used+size > f.maxBytes {
		return fmt.Errorf("%w: %d of %d bytes used, request has %d", ErrFull, used, f.maxBytes, size)
	}
	path, err := f.freePath(h)
	if err != nil {
		return fmt.Errorf("park request: %w", err)
	}
	if err := write(f.dir, path, text, body); err != nil {
		_ = os.Remove(path + unfinished)
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			err = fmt.Errorf("%w: %w", ErrFull, err)
		}
		return fmt.Errorf("park request: %w", err)
	}
	f.added(size)
	return nil
}

// freePath returns a path that does not exist. Names sort by the time of
// parking.
func (f *Folder) freePath(h Head) (string, error) {
	for n := range 1000 {
		name := fmt.Sprintf("%s-%03d-%s%s", h.Parked.Format(timeInName), n, h.Signal, ending(h.Waits))
		path := filepath.Join(f.dir, name)
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return path, nil
		} else if err != nil {
			return "", err
		}
	}
	return "", errors.New("no free file name")
}

// timeInName is a time layout that sorts as text.
const timeInName = "20060102T150405.000000000Z"

func ending(waits bool) string {
	if waits {
		return "-waits" + suffix
	}
	return suffix
}

// Waiting returns the names of the waiting requests of a signal, oldest first.
func (f *Folder) Waiting(signal string) ([]string, error) {
	return f.names(func(name string) bool { return strings.HasSuffix(name, "-"+signal+ending(true)) })
}

// ParkedBefore returns the names of the requests of a signal parked before t,
// oldest first.
func (f *Folder) ParkedBefore(t time.Time, signal string) ([]string, error) {
	limit := t.UTC().Format(timeInName)
	return f.names(func(name string) bool {
		return name < limit && (strings.HasSuffix(name, "-"+signal+ending(false)) || strings.HasSuffix(name, "-"+signal+ending(true)))
	})
}

func (f *Folder) names(want func(string) bool) ([]string, error) {
	entries, err := os.ReadDir(f.dir) // sorted
	if err != nil {
		return nil, fmt.Errorf("list parked requests: %w", err)
	}
	var names []string
	for _, e := range entries {
		if want(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// write creates the file path atomically and syncs it.
func write(dir, path string, parts ...[]byte) error {
	file, err := os.OpenFile(path+unfinished, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	for _, part := range parts {
		if _, err = file.Write(part); err != nil {
			break
		}
	}
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+unfinished, path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Usage returns the number of parked requests and the size of their files. A
// partial file left by a crash counts by its bytes only.
func (f *Folder) Usage() (requests int, size int64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err = f.used()
	return f.known.requests, f.known.size, err
}

// used returns the size of the files. It counts them again if another process
// changed the directory, and at intervals, because two changes may share a
// modification time. The caller holds mu.
func (f *Folder) used() (int64, error) {
	info, err := os.Stat(f.dir)
	if err != nil {
		return 0, err
	}
	if info.ModTime().Equal(f.known.changed) && time.Since(f.known.counted) < countInterval {
		return f.known.size, nil
	}
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return 0, err
	}
	now := usage{changed: info.ModTime(), counted: time.Now()}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue // just removed, or not a parked request
		}
		now.size += info.Size()
		if strings.HasSuffix(e.Name(), suffix) {
			now.requests++
		}
	}
	f.known = now
	return now.size, nil
}

// countInterval bounds how long a file still counts that was removed during a
// Put.
const countInterval = 10 * time.Second

// added counts a file that Put created. The caller holds mu.
func (f *Folder) added(size int64) {
	f.known.requests++
	f.known.size += size
	if info, err := os.Stat(f.dir); err == nil {
		f.known.changed = info.ModTime()
	}
}

// List returns the heads of all parked requests, oldest first. For a damaged
// file it sets only Name, Size and Cause.
func (f *Folder) List() ([]Head, error) {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return nil, fmt.Errorf("list parked requests: %w", err)
	}
	var heads []Head
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), suffix) {
			continue
		}
		h, _, err := f.read(e.Name(), false)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			h.Cause = fmt.Sprintf("damaged file: %v", err)
		}
		heads = append(heads, h)
	}
	slices.SortFunc(heads, func(a, b Head) int { return strings.Compare(a.Name, b.Name) })
	return heads, nil
}

// Get returns a parked request by its name.
func (f *Folder) Get(name string) (Head, []byte, error) {
	h, body, err := f.read(name, true)
	if err != nil {
		return h, nil, fmt.Errorf("read parked request %s: %w", name, err)
	}
	return h, body, nil
}

func (f *Folder) read(name string, whole bool) (Head, []byte, error) {
	h := Head{Name: name}
	if filepath.Base(name) != name || !strings.HasSuffix(name, suffix) {
		return h, nil, fmt.Errorf("%q is not the name of a parked request", name)
	}
	file, err := os.Open(filepath.Join(f.dir, name))
	if err != nil {
		return h, nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return h, nil, err
	}
	size := info.Size()
	damaged := Head{Name: name, Size: size}
	r := bufio.NewReader(file)
	line, err := firstLine(r)
	if err != nil {
		return damaged, nil, err
	}
	if err := json.Unmarshal(line, &h); err != nil {
		return damaged, nil, fmt.Errorf("first line: %w", err)
	}
	h.Name, h.Size = name, size
	if !whole {
		return h, nil, nil
	}
	body, err := io.ReadAll(io.LimitReader(r, size))
	if err != nil {
		return damaged, nil, err
	}
	if crc32.Checksum(body, castagnoli) != h.Checksum {
		return damaged, nil, errors.New("body does not match the checksum")
	}
	return h, body, nil
}

func firstLine(r *bufio.Reader) ([]byte, error) {
	var line bytes.Buffer
	for line.Len() <= maxHead {
		part, err := r.ReadSlice('\n')
		line.Write(part)
		switch {
		case err == nil:
			return line.Bytes(), nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, fmt.Errorf("first line: %w", err)
		}
	}
	return nil, errors.New("first line has no end")
}

// Sweep removes partial files that a crash left. Call it only while no other
// process may be in Put.
func (f *Folder) Sweep() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	paths, err := filepath.Glob(filepath.Join(f.dir, "*"+suffix+unfinished))
	for _, path := range paths {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// Remove removes a parked request. It returns nil if the request is already
// gone.
func (f *Folder) Remove(name string) error {
	if filepath.Base(name) != name || !strings.HasSuffix(name, suffix) {
		return fmt.Errorf("remove parked request: %q is not the name of a parked request", name)
	}
	if err := os.Remove(filepath.Join(f.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove parked request: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known = usage{} // count again
	return nil
}
