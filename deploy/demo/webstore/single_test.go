package webstore

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
)

// startSingles starts every service separately, each on a port of 127.0.0.1.
func startSingles(t *testing.T, endpoint string) map[string]*Single {
	t.Helper()
	addresses, all := map[string]string{}, map[string]*Single{}
	for _, name := range Names() {
		addresses[name] = ports.FreeAddress(t)
	}
	for _, name := range Names() {
		o := SingleOptions{Service: name, Listen: netip.MustParseAddrPort(addresses[name]), Peers: addresses, Endpoint: endpoint, Seed: 1, IdleLimit: time.Second}
		s, err := StartSingle(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = s
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		names := Names()
		for i := range names {
			if err := all[names[len(names)-1-i]].Close(ctx); err != nil {
				t.Error(err)
			}
		}
	})
	return all
}

// Separate services form the same shop, and cause the trouble that they are
// configured for.
func TestSingles(t *testing.T) {
	all := startSingles(t, newReceiver(t).endpoint)
	visit := func() int {
		t.Helper()
		failed, err := all[loadGenerator].Visit(t.Context(), 10, 5)
		if err != nil {
			t.Fatal(err)
		}
		return failed
	}
	if failed := visit(); failed != 0 {
		t.Errorf("%d of 10 visitors saw errors in a shop without trouble", failed)
	}
	all[checkoutService].SetTrouble(Trouble{Attachment: 500_000})
	if failed := visit(); failed != 0 {
		t.Errorf("%d of 10 visitors saw errors because of attachments", failed)
	}
	all[currencyService].SetTrouble(Trouble{Slow: 50 * time.Millisecond})
	began := time.Now()
	if failed := visit(); failed != 0 || time.Since(began) < 100*time.Millisecond {
		t.Errorf("%d of 10 visitors saw errors and all took %s in a shop with a slow service", failed, time.Since(began))
	}
	all[productCatalogService].SetTrouble(Trouble{FailPercent: 100})
	if failed := visit(); failed != 10 {
		t.Errorf("%d of 10 visitors saw errors in a shop without products", failed)
	}
}

func TestStartSingleErrors(t *testing.T) {
	listen := netip.MustParseAddrPort("127.0.0.1:0")
	tests := map[string]struct {
		options SingleOptions
		want    string
	}{
		"a peer":     {SingleOptions{Service: cartService, Listen: listen, Endpoint: "127.0.0.1:1"}, "no address of its peer redis"},
		"a service":  {SingleOptions{Service: "bookkeeping", Listen: listen, Endpoint: "127.0.0.1:1"}, "no such service"},
		"a receiver": {SingleOptions{Service: adService, Listen: listen}, "no endpoint"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := StartSingle(t.Context(), tc.options); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("StartSingle = %v, want an error with %q", err, tc.want)
			}
		})
	}
}

// The host may get the address after the service starts.
func TestStartSingleWaitsForItsAddress(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := StartSingle(ctx, SingleOptions{Service: adService, Listen: netip.MustParseAddrPort("192.0.2.1:8080"), Endpoint: "127.0.0.1:1"})
	if err == nil || ctx.Err() == nil {
		t.Errorf("StartSingle = %v before its context ended", err)
	}
}
