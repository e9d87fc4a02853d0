package mcp

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
)

// testTime is for a busy machine.
const testTime = 2 * time.Minute

func TestMain(m *testing.M) {
	chengine.MaybeRunChild()
	goleak.VerifyTestMain(m)
}
