package traces_test

import (
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

// Whatever a request is made of, the work on it grows with its bytes, and so does the memory.
func TestWorkIsLinear(t *testing.T) {
	opts := options()
	opts.MaxRecordBytes = 1 << 30
	small, large := otlptest.Hostile(otlptest.SmallRequest, opts.Window.Latest), otlptest.Hostile(otlptest.LargeRequest, opts.Window.Latest)
	for name := range small {
		t.Run(name, func(t *testing.T) {
			requests := [2][]byte{small[name], large[name]}
			t.Run("Split", func(t *testing.T) {
				otlptest.Linear(t, 30, requests, func(req []byte) {
					if _, _, err := traces.Signal.NewSplitter().Split(req, opts); err != nil {
						t.Fatal(err)
					}
				})
			})
			t.Run("AddHostAddress", func(t *testing.T) {
				otlptest.Linear(t, 10, requests, func(req []byte) {
					if _, _, err := traces.AddHostAddress(nil, req, hostAddress); err != nil {
						t.Fatal(err)
					}
				})
			})
			t.Run("Select", func(t *testing.T) {
				otlptest.Linear(t, 30, requests, func(req []byte) {
					if _, err := traces.Signal.Select(req, func(i int) bool { return i%2 == 0 }); err != nil {
						t.Fatal(err)
					}
				})
			})
		})
	}
}
