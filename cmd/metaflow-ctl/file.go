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

// maxFileBytes is for sixteen groups that say as much as one may.
const maxFileBytes = 16 << 20

// file is what the configurations of one or several groups were read from.
type file struct {
	name string // as problems show it
	// documents are texts of one configuration each. Lines before the document are
	// empty in it, so that lines are counted as in the file.
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

// split takes a stream of YAML documents apart at lines that begin with three hyphens.
// Configurations have no text of several lines that such a line could belong to.
func split(text []byte) [][]byte {
	var documents [][]byte
	var current []byte
	said, lines := false, 0 // whether current says anything; lines before the one at hand
	end := func() {
		if said {
			documents = append(documents, current)
		}
		current, said = bytes.Repeat([]byte("\n"), lines), false
	}
	for line := range bytes.Lines(text) {
		if bytes.HasPrefix(line, []byte("---")) && strings.TrimSpace(string(line[3:])) == "" {
			lines++
			end()
			continue
		}
		content := bytes.TrimSpace(line)
		said = said || len(content) > 0 && content[0] != '#'
		current = append(current, line...)
		lines++
	}
	end()
	if documents == nil {
		return [][]byte{text} // only comments, which is one document that sets nothing
	}
	return documents
}

// explain puts the file's name before every line that the server refused.
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
