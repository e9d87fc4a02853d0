package agent

import (
	"os"
	"path/filepath"
	"testing"
)

func TestSecretIsCreatedOnce(t *testing.T) {
	dir := t.TempDir()
	made, err := Secret(dir)
	if err != nil || len(made) < 26 {
		t.Fatalf("Secret = %q, %v", made, err)
	}
	if again, err := Secret(dir); err != nil || again != made {
		t.Errorf("Secret = %q, %v, want the same again", again, err)
	}
	if info, err := os.Stat(filepath.Join(dir, SecretFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info.Mode(), err)
	}
	if other, err := Secret(t.TempDir()); err != nil || other == made {
		t.Errorf("another agent has %q, %v", other, err)
	}
	if _, err := Secret(filepath.Join(dir, "not there")); err == nil {
		t.Error("returned a secret that could not be stored")
	}
}
