package values

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

var (
	errDial   = errors.New("is not host:port such as kafka-1:9092 or [2001:db8::1]:9092")
	errListen = errors.New("is not host:port such as 0.0.0.0:8080, [::1]:8080 or :8080")
	errIP     = errors.New("is not an IP address such as 192.0.2.1 or 2001:db8::1")
)

// CheckDial checks an address to connect to: a name or an IP address, and a port
// of at least 1. An IPv6 address stands in brackets. White space around it counts:
// nobody removes it before the address is used.
func CheckDial(text string) error {
	host, port, ok := splitHostPort(text)
	if !ok || host == "" || port == 0 {
		return errDial
	}
	return nil
}

// CheckListen checks an address to listen on. Without a host it means every
// address of this machine, and port 0 picks a free one.
func CheckListen(text string) error {
	if _, _, ok := splitHostPort(text); !ok {
		return errListen
	}
	return nil
}

// Loopback reports whether only this machine reaches an address to listen on.
func Loopback(listen string) bool {
	host, _, ok := splitHostPort(listen)
	return ok && LoopbackHost(host)
}

// LoopbackHost reports whether a host, a name or an IP address, is this machine alone.
func LoopbackHost(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// CheckExposed refuses to listen in plain text where other hosts reach the port, unless
// the operator says so. The key insecure says so. tls is the section that encrypts the
// port.
func CheckExposed(listen string, encrypted, allowed bool, tls, insecure string) error {
	if _, _, ok := splitHostPort(listen); !ok || encrypted || allowed || Loopback(listen) {
		return nil // what is no address is an error of CheckListen
	}
	return fmt.Errorf("%q accepts plain text from other hosts: set %s.cert_file and %s.key_file, or allow it with the line \"%s: true\", or listen on 127.0.0.1",
		listen, tls, tls, insecure)
}

// splitHostPort does what net.SplitHostPort does, without the network's package,
// and accepts only hosts and ports that can exist.
func splitHostPort(text string) (host string, port uint16, ok bool) {
	colon := strings.LastIndexByte(text, ':')
	if colon < 0 {
		return "", 0, false
	}
	port, err := Port(text[colon+1:])
	if err != nil || strings.TrimSpace(text[colon+1:]) != text[colon+1:] {
		return "", 0, false
	}
	host = text[:colon]
	if inner, bracketed := strings.CutPrefix(host, "["); bracketed {
		inner, closed := strings.CutSuffix(inner, "]")
		addr, err := netip.ParseAddr(inner)
		return inner, port, closed && err == nil && addr.Is6()
	}
	return host, port, !strings.ContainsFunc(host, notInHost)
}

// notInHost is true for what stands in no host name and in no IPv4 address. It
// finds URLs, lists and addresses of IPv6 without brackets.
func notInHost(r rune) bool {
	return r <= ' ' || strings.ContainsRune(`:/\[]@,;?#%"'<>(){}|=&$*+!^~`+"`\u007f", r)
}

// IP parses an IP address.
func IP(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, errIP
	}
	return addr, nil
}

// List splits a list that is written in one text: items separated by commas,
// without the white space around them. Empty items do not count.
func List(text string) []string {
	items := []string{}
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}
