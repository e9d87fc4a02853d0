package main

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
)

// refuseSites refuses requests that browsers send for pages of other sites, which could
// start costly queries, except those for which pass returns true. A nil pass makes no
// exception.
func refuseSites(next http.Handler, pass func(*http.Request) bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if otherSite(r) && (pass == nil || !pass(r)) {
			http.Error(w, "requests of other sites' web pages are refused", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// otherSite reports whether a page of another site or port sends r. Browsers omit
// Sec-Fetch-Site in plain HTTP to other hosts, and always send an Origin with a POST.
func otherSite(r *http.Request) bool {
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" {
		return site != "none" && site != "same-origin"
	}
	for _, origin := range r.Header.Values("Origin") {
		if u, err := url.Parse(origin); err != nil || u.Host == "" || !strings.EqualFold(u.Host, r.Host) {
			return true
		}
	}
	return false
}

// followsLink reports whether a browser opens the page /ui/ in a window, not in a frame. The
// page itself asks for no data.
func followsLink(r *http.Request) bool {
	return r.Method == http.MethodGet && (r.URL.Path == "/" || r.URL.Path == "/ui/") &&
		r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
}

// ownHost refuses requests for other names than this host's: a page whose name was rebound
// to loopback could read data by them. The answer ends with hint.
func ownHost(next http.Handler, hint string) http.Handler {
	hostname, _ := os.Hostname() // without it, only localhost and addresses are accepted
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !loopbackName(r.Host, hostname) {
			http.Error(w, "requests must be for localhost or this host's name, not for "+strconv.Quote(r.Host)+hint, http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func loopbackName(host, hostname string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap().IsLoopback()
	}
	return strings.EqualFold(host, "localhost") || hostname != "" && strings.EqualFold(host, hostname)
}
