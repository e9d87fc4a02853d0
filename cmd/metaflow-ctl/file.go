package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/metaflowys/metaflow-server/pkg/control/api"
)

// maxFileBytes allows sixteen groups of maximum size.
const maxFileBytes = 16 << 20

// file holds the configurations of one or several groups, as read from one file.
type file struct {
	name string // as shown in problems
	// documents are the texts of one configuration each. Each starts with an empty line
	// for every line before it, so that line numbers match the file.
	documents [][]byte
}

func readFile(name string, stdin io.Reader) (*file, error) {
	f := &file{name: name}
	in := stdin
	if name == "-" {
		f.name = "standard input"
	} else {
		r, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		in = r
	}
	text, err := io.ReadAll(io.LimitReader(in, maxFileBytes+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", f.name, err)
	case len(text) > maxFileBytes:
		return nil, fmt.Errorf("%s is larger than %d bytes", f.name, maxFileBytes)
	case len(bytes.TrimSpace(text)) == 0: // most likely the program before the pipe failed
		return nil, fmt.Errorf("%s is empty", f.name)
	}
	f.documents = split(text)
	return f, nil
}

// split splits a stream of YAML documents at lines of three hyphens. Configurations have
// no multi-line text that could contain such a line.
func split(text []byte) [][]byte {
	var documents [][]byte
	var current []byte
	hasContent, lines := false, 0 // hasContent: current has more than comments; lines: lines before the current one
	end := func() {
		if hasContent {
			documents = append(documents, current)
		}
		current, hasContent = bytes.Repeat([]byte("\n"), lines), false
	}
	for line := range bytes.Lines(text) {
		if bytes.HasPrefix(line, []byte("---")) && strings.TrimSpace(string(line[3:])) == "" {
			lines++
			end()
			continue
		}
		content := bytes.TrimSpace(line)
		hasContent = hasContent || len(content) > 0 && content[0] != '#'
		current = append(current, line...)
		lines++
	}
	end()
	if documents == nil {
		return [][]byte{text} // only comments: one document that sets nothing
	}
	return documents
}

// explain prefixes every problem that the server found with the file's name.
func (f *file) explain(err error) error {
	var p *api.Problem
	if !errors.As(err, &p) || len(p.Problems) == 0 {
		return err
	}
	var b strings.Builder
	b.WriteString(p.Message)
	for _, detail := range p.Problems {
		where := f.name
		if detail.Line > 0 {
			where = fmt.Sprintf("%s:%d", f.name, detail.Line)
		}
		detail.Line = 0
		fmt.Fprintf(&b, "\n  %s: %s", where, detail)
	}
	return errors.New(b.String())
}
