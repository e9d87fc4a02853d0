package values_test

import (
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/values"
)

// What is no address at all has an error of its own, and is not said to be exposed.
func TestCheckExposed(t *testing.T) {
	for listen, exposed := range map[string]bool{
		"127.0.0.1:20035": false, "localhost:0": false, "[::1]:1": false,
		":20035": true, "0.0.0.0:20035": true, "shop.example:1": true,
		"127.0.0.1:99999": false, "127.0.0.1": false, "127.0.0.1:http": false,
	} {
		if err := values.CheckExposed(listen, false, false, "grpc.tls", "grpc.insecure"); (err != nil) != exposed {
			t.Errorf("CheckExposed(%q) = %v", listen, err)
		}
		if values.CheckExposed(listen, true, false, "", "") != nil || values.CheckExposed(listen, false, true, "", "") != nil {
			t.Errorf("CheckExposed(%q) refuses what is encrypted or allowed", listen)
		}
	}
}
