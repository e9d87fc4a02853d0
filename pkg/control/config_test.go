package control_test

import (
	"strings"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/control"
)

func TestConfigNamesEveryProblem(t *testing.T) {
	t.Parallel()
	if err := control.DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
	err := control.Config{ForgetAfter: time.Minute}.Validate()
	for _, key := range []string{"max_streams: 0", "max_agents: 0", "forget_after: 1m0s"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%q is not in %v", key, err)
		}
	}
	if _, err := control.New(control.DefaultConfig(), control.Options{}); err == nil {
		t.Error("a replica without a name")
	}
}
