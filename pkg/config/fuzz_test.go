package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/config"
)

// Any file is read, or its problems are named.
func FuzzFile(f *testing.F) {
	f.Add([]byte("name: x\nsection:\n  wait: 5s\n  list: [a, b]\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("name: 0x10\nname: twice\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		type section struct {
			Wait  time.Duration `mapstructure:"wait" doc:"a time"`
			List  []string      `mapstructure:"list" doc:"a list"`
			Count int           `mapstructure:"count" doc:"a number"`
		}
		cfg := struct {
			Name    string  `mapstructure:"name" doc:"a text"`
			Section section `mapstructure:"section"`
		}{}
		file := filepath.Join(t.TempDir(), "file.yaml")
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		err := config.Load(&cfg, config.Options{File: file})
		var problems *config.Error
		if err != nil && (!errors.As(err, &problems) || len(problems.Problems) == 0) {
			t.Errorf("error %v", err)
		}
	})
}
