// Package parked keeps aside the requests that an agent has acknowledged and that its servers do not take:
// a folder with one file for each, bounded in bytes, that an operator can look into.
//
// A file is one line of JSON, the [Head], and then the request's body, so `head -n 1` shows why it is there. It
// appears in one step and is on stable storage when [Folder.Put] returns. Its name says when it was parked, the kind
// and whether it waits, so those are found without opening files. A file that is removed, by whomever, is
// forgotten, and two processes may use the folder at a time.
//
// The package never removes what was not asked for by name. It knows nothing of what a body means.
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

// ErrFull says that there is no room: the bound is reached, or the disk is full.
var ErrFull = errors.New("the folder of parked requests is full")

// Head says what a parked request is and why it is there.
type Head struct {
	Name     string    `json:"-"`               // of the file
	Size     int64     `json:"-"`               // of the file
	Kind     string    `json:"kind"`            // "spans" or "flows"
	Items    int       `json:"items"`           // in the body
	Refused  int64     `json:"refused"`         // of them; the others are stored
	Cause    string    `json:"cause"`           // what the server answered
	Waits    bool      `json:"waits,omitempty"` // the agent tries again by itself
	Received time.Time `json:"received"`        // by the agent
	Parked   time.Time `json:"parked"`
	Encoding string    `json:"encoding"` // of the body: "zstd"
	Checksum uint32    `json:"crc32c"`   // of the body
}

// Folder is a directory of parked requests. Make one with Open. Its methods may be called
// concurrently.
type Folder struct {
	dir      string
	maxBytes int64

	mu    sync.Mutex // one Put at a time, so that the bound holds
	known usage
}

// usage is what the files take.
type usage struct {
	changed  time.Time // of the directory
	counted  time.Time
	requests int
	size     int64
}

const (
	suffix     = ".parked"
	unfinished = ".new"
	maxHead    = 1 << 20 // a first line that is longer is none of ours
	maxCause   = 4 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Open returns the folder dir, which it makes when it is missing. Put refuses what would make its files
// take more than maxBytes.
func Open(dir string, maxBytes int64) (*Folder, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder of parked requests: %w", err)
	}
	return &Folder{dir: dir, maxBytes: maxBytes}, nil
}

// Dir is where the files are.
func (f *Folder) Dir() string { return f.dir }

// MaxBytes is what the files may take together.
func (f *Folder) MaxBytes() int64 { return f.maxBytes }

// Put keeps body, as h says. It sets the fields of h that are about the file, and Parked when that is zero.
func (f *Folder) Put(h Head, body []byte) error {
	if h.Parked.IsZero() {
		h.Parked = time.Now()
	}
	h.Received, h.Parked = h.Received.UTC(), h.Parked.UTC()
	h.Cause = strings.ToValidUTF8(h.Cause[:min(len(h.Cause), maxCause)], "?")
	h.Checksum = crc32.Checksum(body, castagnoli)
	text, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("park a request: %w", err)
	}
	text = append(text, '\n')

	f.mu.Lock()
	defer f.mu.Unlock()
	used, err := f.used()
	if err != nil {
		return fmt.Errorf("park a request: %w", err)
	}
	size := int64(len(text) + len(body))
	if used+size > f.maxBytes {
		return fmt.Errorf("%w: it takes %d of %d bytes, and this request %d", ErrFull, used, f.maxBytes, size)
	}
	path, err := f.free(h)
	if err != nil {
		return fmt.Errorf("park a request: %w", err)
	}
	if err := write(f.dir, path, text, body); err != nil {
		_ = os.Remove(path + unfinished)
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			err = fmt.Errorf("%w: %w", ErrFull, err)
		}
		return fmt.Errorf("park a request: %w", err)
	}
	f.added(size)
	return nil
}

// free returns the path of a file that does not exist. Names sort by the time of parking.
func (f *Folder) free(h Head) (string, error) {
	for n := range 1000 {
		name := fmt.Sprintf("%s-%03d-%s%s", h.Parked.Format(timeInName), n, h.Kind, ending(h.Waits))
		path := filepath.Join(f.dir, name)
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return path, nil
		} else if err != nil {
			return "", err
		}
	}
	return "", errors.New("no name is free")
}

// timeInName sorts as text.
const timeInName = "20060102T150405.000000000Z"

func ending(waits bool) string {
	if waits {
		return "-waits" + suffix
	}
	return suffix
}

// Waiting returns the names of the requests of a kind that wait, oldest first.
func (f *Folder) Waiting(kind string) ([]string, error) {
	return f.names(func(name string) bool { return strings.HasSuffix(name, "-"+kind+ending(true)) })
}

// ParkedBefore returns the names of the requests of a kind that were parked before t, oldest first.
func (f *Folder) ParkedBefore(t time.Time, kind string) ([]string, error) {
	limit := t.UTC().Format(timeInName)
	return f.names(func(name string) bool {
		return name < limit && (strings.HasSuffix(name, "-"+kind+ending(false)) || strings.HasSuffix(name, "-"+kind+ending(true)))
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

// write makes the file path, whole or not at all.
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

// Usage returns how many requests are parked, and the bytes that their files take. Half a file that a
// crash left counts by its bytes.
func (f *Folder) Usage() (requests int, size int64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err = f.used()
	return f.known.requests, f.known.size, err
}

// used is the size of the files. It counts them when somebody else has changed the directory, and now and then because
// two changes may have one time. It needs mu.
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
			continue // it was removed just now, or is not ours
		}
		now.size += info.Size()
		if strings.HasSuffix(e.Name(), suffix) {
			now.requests++
		}
	}
	f.known = now
	return now.size, nil
}

// countInterval bounds how long a file counts that was removed in the moment of a Put.
const countInterval = 10 * time.Second

// added counts a file that Put has made. It needs mu.
func (f *Folder) added(size int64) {
	f.known.requests++
	f.known.size += size
	if info, err := os.Stat(f.dir); err == nil {
		f.known.changed = info.ModTime()
	}
}

// List returns the heads of all parked requests, oldest first. Of a file that is damaged only Name, Size and
// Cause are set.
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
			h.Cause = fmt.Sprintf("the file is damaged: %v", err)
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
		return damaged, nil, fmt.Errorf("its first line: %w", err)
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
		return damaged, nil, errors.New("its body does not match the checksum")
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
			return nil, fmt.Errorf("its first line: %w", err)
		}
	}
	return nil, errors.New("its first line has no end")
}

// Sweep removes what a crash left of files that were being written. Only who alone puts may call it.
func (f *Folder) Sweep() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	paths, err := filepath.Glob(filepath.Join(f.dir, "*"+suffix+unfinished))
	for _, path := range paths {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// Remove forgets a parked request. One that is gone already is no error.
func (f *Folder) Remove(name string) error {
	if filepath.Base(name) != name || !strings.HasSuffix(name, suffix) {
		return fmt.Errorf("remove parked request: %q is not the name of one", name)
	}
	if err := os.Remove(filepath.Join(f.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove parked request: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known = usage{} // count again
	return nil
}
