package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"time"
)

// engineDoor is a proxy for the HTTP port of the embedded ClickHouse, which has no
// password. It refuses requests that browsers send for web pages and forwards everything
// else.
type engineDoor struct {
	listener net.Listener
	http     *http.Server
}

// openEngineDoor listens on a loopback port, 0 for a free one, and forwards to the engine
// at target.
func openEngineDoor(port int, target string) (*engineDoor, error) {
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return nil, err
	}
	proxy := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: target}) },
		FlushInterval: -1, // forward the progress of a query while it runs
		Transport:     &http.Transport{DisableCompression: true},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { // the engine's end is logged once, where it is restarted
			http.Error(w, "ClickHouse does not answer: it may be starting again, try once more", http.StatusBadGateway)
		},
	}
	const headerTimeout = 10 * time.Second
	return &engineDoor{listener: listener, http: &http.Server{Handler: refusePages(proxy), ReadHeaderTimeout: headerTimeout}}, nil
}

func (d *engineDoor) addr() string { return d.listener.Addr().String() }

// run serves until ctx ends.
func (d *engineDoor) run(ctx context.Context) {
	defer context.AfterFunc(ctx, func() { _ = d.http.Close() })()
	_ = d.http.Serve(d.listener) // ends with ctx: it tries again by itself where open files are lacking
}

// refusePages refuses requests of other sites' pages, and ones for a host name that is not
// this host's, such as a name rebound to loopback. ClickHouse's own page /play passes.
func refusePages(next http.Handler) http.Handler { return refuseSites(ownHost(next, ""), nil) }
