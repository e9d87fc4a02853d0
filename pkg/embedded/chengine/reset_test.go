package chengine_test

import (
	"fmt"
	"net"
	"net/http"
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/testkit/chtest"
)

// A client that disconnects before its response is written must not end the engine:
// writing to a reset connection raises SIGPIPE, which by default ends the process.
func TestEngineSurvivesResetConnections(t *testing.T) {
	e := chtest.Start(t, chengine.Options{})
	for range 20 {
		conn, err := net.Dial("tcp", e.HTTPAddr())
		if err != nil {
			t.Fatal(err)
		}
		const query = "/?query=SELECT%20number%20FROM%20numbers(3000000)"
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", query); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err != nil { // the response has begun
			t.Fatal(err)
		}
		if err := conn.(*net.TCPConn).SetLinger(0); err != nil { // close sends a reset
			t.Fatal(err)
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + e.HTTPAddr() + "/ping")
	if err != nil {
		t.Fatalf("ask after the resets: %v (engine: %v)", err, e.Err())
	}
	if err := resp.Body.Close(); err != nil {
		t.Error(err)
	}
}
