package semconv

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParseEndpoint(t *testing.T) {
	tests := map[string]struct {
		text string
		ip   string
		port uint16
		ok   bool
	}{
		"IPv4":                             {"10.1.2.3", "10.1.2.3", 0, true},
		"IPv4 with a port":                 {"10.1.2.3:80", "10.1.2.3", 80, true},
		"IPv4 as Java prints it":           {"/10.1.2.3:80", "10.1.2.3", 80, true},
		"IPv4 in brackets":                 {"[10.1.2.3]", "10.1.2.3", 0, true},
		"IPv4 with a leading zero":         {"10.1.2.03", "", 0, false},
		"IPv4 with a colon and no port":    {"10.1.2.3:", "", 0, false},
		"IPv4 with a port out of range":    {"10.1.2.3:65536", "", 0, false},
		"IPv4 with port zero":              {"10.1.2.3:0", "", 0, false},
		"IPv6":                             {"2001:db8::1", "2001:db8::1", 0, true},
		"IPv6 in full":                     {"2001:0DB8:0:0:0:0:0:1", "2001:db8::1", 0, true},
		"IPv6 with a port":                 {"[2001:db8::1]:443", "2001:db8::1", 443, true},
		"IPv6 in brackets":                 {"[::1]", "::1", 0, true},
		"IPv6 with a zone":                 {"fe80::1%eth0", "fe80::1", 0, true},
		"IPv6 with a zone and a port":      {"[fe80::1%eth0]:1", "fe80::1", 1, true},
		"v4-mapped":                        {"::ffff:10.1.2.3", "10.1.2.3", 0, true},
		"v4-mapped in hexadecimal":         {"::ffff:a01:203", "10.1.2.3", 0, true},
		"unspecified":                      {"::", "::", 0, true},
		"host name":                        {"orders", "", 0, false},
		"host name with a port":            {"orders:8080", "", 0, false},
		"host name that begins like IPv6":  {"cafe", "", 0, false},
		"host name that begins like IPv4":  {"10.example.com", "", 0, false},
		"socket in the file system":        {"/var/run/db.sock", "", 0, false},
		"bracket without an end":           {"[::1", "", 0, false},
		"bracket followed by something":    {"[::1]x", "", 0, false},
		"brackets followed by a colon":     {"[::1]:", "", 0, false},
		"prefix length":                    {"10.0.0.0/8", "", 0, false},
		"empty":                            {"", "", 0, false},
		"a slash":                          {"/", "", 0, false},
		"nine groups":                      {"1:2:3:4:5:6:7:8:9", "", 0, false},
		"gap that stands for nothing":      {"1:2:3:4:5:6:7::8", "1:2:3:4:5:6:7:8", 0, false},
		"five digits":                      {"12345::", "", 0, false},
		"two gaps":                         {"1::2::3", "", 0, false},
		"zone without a name":              {"fe80::1%", "", 0, false},
		"IPv4 with a zone":                 {"10.1.2.3%eth0", "", 0, false},
		"IPv4 in the middle of an address": {"1:2:3:10.1.2.3:4::", "", 0, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			ip, port, ok := parseEndpoint([]byte(tc.text))
			if ok != tc.ok {
				t.Fatalf("parseEndpoint(%q) accepted: %v, want %v", tc.text, ok, tc.ok)
			}
			if !ok {
				return
			}
			if got := netip.AddrFrom16(ip).Unmap().String(); got != tc.ip || port != tc.port {
				t.Errorf("parseEndpoint(%q) = %s, %d, want %s, %d", tc.text, got, port, tc.ip, tc.port)
			}
		})
	}
}

// FuzzParseAddress checks parseAddress's contract for arbitrary text: it accepts what
// net/netip accepts, with the same result, and never panics.
func FuzzParseAddress(f *testing.F) {
	for _, seed := range []string{
		"", "0.0.0.0", "255.255.255.255", "1.2.3", "1.2.3.4.5", "01.2.3.4", "::", "::1", "1::", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:1.2.3.4", "::ffff:1.2.3.4%a",
		"fe80::1%eth0", "1:2:3:4:5:6:7::", "::1.2.3.4", "1:2:3:4:5:6:7:1.2.3.4", "g::", "1:::2", "%", "::%", "abcde::",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, ok := parseAddress([]byte(text))
		want, err := netip.ParseAddr(text)
		if ok != (err == nil) {
			t.Fatalf("parseAddress(%q) accepted: %v, netip: %v", text, ok, err)
		}
		if ok && got != want.As16() {
			t.Fatalf("parseAddress(%q) = %x, netip %x", text, got, want.As16())
		}
	})
}

// FuzzParseEndpoint compares parseEndpoint with net/netip's reading of an address with a
// port, unless the port is 0 or has more than five digits.
func FuzzParseEndpoint(f *testing.F) {
	for _, seed := range []string{"1.2.3.4:5", "[::1]:65535", "[::1%z]:1", "[1.2.3.4]:5", "::1:5", "1.2.3.4:05", ":1", "[]:1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, port, ok := parseEndpoint([]byte(text))
		want, err := netip.ParseAddrPort(text)
		if err != nil || want.Port() == 0 || len(text)-strings.LastIndexByte(text, ':') > 6 {
			return
		}
		if !ok || got != want.Addr().As16() || port != want.Port() {
			t.Fatalf("parseEndpoint(%q) = %x, %d, %v, netip %v", text, got, port, ok, want)
		}
	})
}

func BenchmarkParseEndpoint(b *testing.B) {
	for _, text := range []string{"10.244.1.7", "2001:db8::7:1", "[::ffff:10.244.1.7]:8080", "orders.shop.svc.cluster.local"} {
		b.Run(text, func(b *testing.B) {
			data := []byte(text)
			b.ReportAllocs()
			for b.Loop() {
				parseEndpoint(data)
			}
		})
	}
}
