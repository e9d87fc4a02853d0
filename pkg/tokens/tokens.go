// Package tokens holds the tokens that callers may present: those of the configuration,
// and those of files that may change while the program runs.
//
// It keeps salted hashes, not the tokens, so neither the time of a look-up nor a dump of
// its memory tells much about them. No error or log line contains a token.
package tokens

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// lookAgain is how long a token may still be accepted after it was removed from its
	// file.
	lookAgain = 2 * time.Second
	// maxFileBytes is room for ten thousand tokens.
	maxFileBytes = 1 << 20
	// maxTokenBytes fits into the headers that servers accept.
	maxTokenBytes = 4 << 10
)

// List is where the tokens of one purpose come from.
type List struct {
	Key    string   // key of Values; the file's key is Key + "_file"
	Values []string // from the configuration
	File   string   // one token a line; empty lines and lines with # do not count
	// Grouped means that a token is for one agent group: GROUP:TOKEN. A token of another
	// list is for all.
	Grouped bool
	// Label is what Match returns for a token of the list.
	Label string
}

// Match is what a token is good for. The zero value is a token that is not known.
type Match struct {
	Label  string   // of the list
	All    bool     // good for every group
	Groups []string // by id or name, if not All
}

// Known reports whether the token is known.
func (m Match) Known() bool { return m.All || len(m.Groups) > 0 }

// For reports whether the token is good for a group that has these names.
func (m Match) For(names ...string) bool {
	return m.All || slices.ContainsFunc(names, func(name string) bool { return slices.Contains(m.Groups, name) })
}

// Set is the tokens of one or more lists. It is safe for concurrent use. A nil Set
// asks for no token.
type Set struct {
	lists []List
	log   *slog.Logger

	read    []reading // of the files, by list
	current atomic.Pointer[table]
}

// reading is what was last read from a file.
type reading struct {
	text  []byte
	fault string // why the last reading was not used
}

// table is the tokens at one time. It does not change.
type table struct {
	salt   [sha256.Size]byte
	tokens map[[sha256.Size]byte]Match
}

// Open reads the files once, so that a mistake shows at the start. It returns nil if no
// list has a token or a file. A nil logger discards.
func Open(log *slog.Logger, lists ...List) (*Set, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	lists = slices.DeleteFunc(slices.Clone(lists), func(l List) bool { return len(l.Values) == 0 && l.File == "" })
	if len(lists) == 0 {
		return nil, nil //nolint:nilnil // nil asks for no token
	}
	s := &Set{lists: lists, log: log, read: make([]reading, len(lists))}
	var errs []error
	for i, l := range lists {
		text, err := l.readFile()
		if err == nil {
			_, err = l.parse(text)
		}
		errs = append(errs, err)
		s.read[i].text = text
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	s.build()
	return s, nil
}

// Match returns what a token is good for. A nil Set returns the zero value.
func (s *Set) Match(token string) Match {
	if s == nil || token == "" || len(token) > maxTokenBytes {
		return Match{}
	}
	t := s.current.Load()
	return t.tokens[t.hash(token)]
}

// Run looks at the files every few seconds until ctx ends, and calls changed after the
// tokens have changed. A file that cannot be read or has a line without a token changes
// nothing; an empty file has no tokens, so nobody can present one.
func (s *Set) Run(ctx context.Context, changed func()) {
	if s == nil || !slices.ContainsFunc(s.lists, func(l List) bool { return l.File != "" }) {
		<-ctx.Done()
		return
	}
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if s.look() && changed != nil {
			changed()
		}
	}
}

// look reads the files again and reports whether the tokens have changed.
func (s *Set) look() (changed bool) {
	for i, l := range s.lists {
		r := &s.read[i]
		text, err := l.readFile()
		if err == nil && bytes.Equal(text, r.text) {
			r.fault = ""
			continue
		}
		var found []entry
		if err == nil {
			found, err = l.parse(text)
		}
		if err != nil {
			if err.Error() != r.fault {
				r.fault = err.Error()
				s.log.Warn("changed tokens cannot be used, keeping the previous ones", slog.Any("error", err))
			}
			continue
		}
		r.text, r.fault, changed = text, "", true
		s.log.Info("changed tokens are in use", slog.String("file", l.File), slog.Int("tokens", len(found)))
	}
	if changed {
		s.build()
	}
	return changed
}

// build replaces the table.
func (s *Set) build() {
	t := &table{tokens: make(map[[sha256.Size]byte]Match)}
	_, _ = rand.Read(t.salt[:]) // never fails
	for i, l := range s.lists {
		found, _ := l.parse(s.read[i].text) // it was parsed before
		for _, e := range found {
			sum := t.hash(e.token)
			m := t.tokens[sum]
			if m.Label == "" {
				m.Label = l.Label // the label of an earlier list counts
			}
			if l.Grouped {
				m.Groups = append(m.Groups, e.group)
			} else {
				m.All = true
			}
			t.tokens[sum] = m
		}
	}
	s.current.Store(t)
}

func (t *table) hash(token string) [sha256.Size]byte {
	var room [sha256.Size + 256]byte
	return sha256.Sum256(append(append(room[:0], t.salt[:]...), token...))
}

type entry struct{ group, token string }

// parse returns the tokens of the list, with text the content of its file.
func (l List) parse(text []byte) ([]entry, error) {
	var found []entry
	var errs []error
	add := func(where, line string) {
		e := entry{token: line}
		if l.Grouped {
			e.group, e.token, _ = strings.Cut(line, ":")
		}
		switch {
		case l.Grouped && (e.group == "" || e.token == ""):
			errs = append(errs, fmt.Errorf("%s is not GROUP:TOKEN", where))
		case e.token == "":
			errs = append(errs, fmt.Errorf("%s is empty", where))
		case strings.ContainsFunc(e.token, notInToken):
			errs = append(errs, fmt.Errorf("%s has a character that no token can have: use letters, digits and punctuation of ASCII", where))
		case len(e.token) > maxTokenBytes:
			errs = append(errs, fmt.Errorf("%s is longer than %d bytes", where, maxTokenBytes))
		default:
			found = append(found, e)
		}
	}
	for i, v := range l.Values {
		add(fmt.Sprintf("%s[%d]: it", l.Key, i), v) // never the value
	}
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			add(fmt.Sprintf("%s_file: line %d of %s", l.Key, number, l.File), line)
		}
	}
	return found, errors.Join(errs...)
}

// notInToken reports whether r cannot stand in the value of a header.
func notInToken(r rune) bool { return r <= ' ' || r > '~' }

// Validate reports what is wrong with the values, without the tokens themselves and
// without reading the file.
func (l List) Validate() error {
	_, err := l.parse(nil)
	return err
}

// readFile returns nothing if the list has no file.
func (l List) readFile() ([]byte, error) {
	if l.File == "" {
		return nil, nil
	}
	text, err := os.ReadFile(l.File)
	if err == nil && len(text) > maxFileBytes {
		err = fmt.Errorf("%s is larger than %d bytes", l.File, maxFileBytes)
	}
	if err != nil {
		return nil, fmt.Errorf("%s_file: %w", l.Key, err)
	}
	return text, nil
}

// Bearer returns the token of an Authorization header or metadata value, or "".
func Bearer(authorization string) string {
	scheme, token, _ := strings.Cut(authorization, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// FileToken is one token that a client presents: of a file that may change, or fixed.
type FileToken struct {
	fixed string
	file  string

	last atomic.Pointer[fileRead]
}

type fileRead struct {
	token  string
	looked time.Time
}

// OpenFile returns the token in a file, or fixed without a file. It reads the file once,
// so that a mistake shows at the start. key names it in errors.
func OpenFile(key, fixed, file string) (*FileToken, error) {
	t := &FileToken{fixed: fixed, file: file}
	if file == "" {
		return t, nil
	}
	token, err := t.read()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	t.last.Store(&fileRead{token, time.Now()})
	return t, nil
}

// Token returns the token, at most a few seconds old. A file that cannot be read changes
// nothing. A nil FileToken has none.
func (t *FileToken) Token() string {
	if t == nil {
		return ""
	}
	if t.file == "" {
		return t.fixed
	}
	last := t.last.Load()
	now := time.Now()
	if now.Sub(last.looked) < lookAgain {
		return last.token
	}
	next := &fileRead{last.token, now}
	if token, err := t.read(); err == nil {
		next.token = token
	}
	t.last.Store(next)
	return next.token
}

func (t *FileToken) read() (string, error) {
	text, err := os.ReadFile(t.file)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(text))
	if token == "" || strings.ContainsFunc(token, notInToken) {
		return "", fmt.Errorf("%s does not hold exactly one token", t.file)
	}
	return token, nil
}
