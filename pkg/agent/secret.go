package agent

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// SecretFile is the file in the state directory that holds the secret that proves to servers that an agent owns its id.
const SecretFile = "secret"

// Secret returns the secret stored in dir, and creates it if there is none.
// After the secret is lost, an operator must release the agent's id.
func Secret(dir string) (string, error) {
	name := filepath.Join(dir, SecretFile)
	text, err := os.ReadFile(name)
	if err == nil && len(strings.TrimSpace(string(text))) > 0 {
		return strings.TrimSpace(string(text)), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	secret := rand.Text()
	temporary := name + ".new"
	if err := writeSynced(temporary, secret+"\n"); err != nil {
		return "", fmt.Errorf("store the agent's secret: %w", err)
	}
	return secret, os.Rename(temporary, name)
}

func writeSynced(name, text string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Sync(), f.Close())
}
