package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// stateFile stores the last configuration, so that an agent that starts while
// no server can be reached continues with it.
type stateFile string

// load returns the stored configuration, or nil if there is none.
func (f stateFile) load() (*agentv1.Configuration, error) {
	text, err := os.ReadFile(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // none is an answer
	}
	if err != nil {
		return nil, err
	}
	c := new(agentv1.Configuration)
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, c); err != nil {
		return nil, fmt.Errorf("read %s: %w", f, err)
	}
	return c, nil
}

// save replaces the stored configuration atomically.
func (f stateFile) save(c *agentv1.Configuration) error {
	text, err := protojson.MarshalOptions{Multiline: true}.Marshal(c)
	if err != nil {
		return err
	}
	temporary := string(f) + ".new"
	if err := os.WriteFile(temporary, append(text, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, string(f))
}
