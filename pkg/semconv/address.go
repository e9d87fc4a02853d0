package semconv

import "bytes"

// address is an IPv6 address, or an IPv4 address in its v4-mapped form. The
// zero address stands for none.
type address [16]byte

// v4Prefix begins every v4-mapped address.
var v4Prefix = [12]byte{10: 0xff, 11: 0xff}

func (a address) isV4() bool { return [12]byte(a[:12]) == v4Prefix }

// unspecified reports whether a is :: or 0.0.0.0.
func (a address) unspecified() bool {
	return a == address{} || a == address{10: 0xff, 11: 0xff}
}

// shared reports whether a does not identify one host: unspecified, loopback, link-local
// and multicast addresses.
func (a address) shared() bool {
	if a.unspecified() {
		return true
	}
	if a.isV4() {
		return a[12] == 127 || a[12] == 169 && a[13] == 254 || a[12]&0xf0 == 0xe0
	}
	return a == address{15: 1} || a[0] == 0xfe && a[1]&0xc0 == 0x80 || a[0] == 0xff
}

// parseEndpoint reads an IP address with or without a port: "10.0.0.1",
// "10.0.0.1:80", "::1", "[::1]", "[::1]:80", and the same after the slash that
// Java prints before an address without a name. The port is 0 when there is none. It
// fails for everything else, host names above all.
func parseEndpoint(text []byte) (ip address, port uint16, ok bool) {
	if len(text) > 0 && text[0] == '/' {
		text = text[1:]
	}
	host, tail := splitPort(text)
	if ip, ok = parseAddress(host); !ok || len(tail) == 0 {
		return ip, 0, ok
	}
	if port, ok = parsePort(tail); !ok {
		return address{}, 0, false
	}
	return ip, port, true
}

// splitPort divides "host:port" at the colon and takes the brackets off the
// host. The port is empty when there is none; a bare IPv6 address is all host.
func splitPort(text []byte) (host, port []byte) {
	if len(text) > 0 && text[0] == '[' {
		end := bytes.IndexByte(text, ']')
		switch {
		case end < 0:
			return text, nil
		case end+1 == len(text):
			return text[1:end], nil
		case text[end+1] == ':' && end+2 < len(text):
			return text[1:end], text[end+2:]
		}
		return text, nil
	}
	colon := bytes.IndexByte(text, ':')
	if colon < 0 || colon+1 == len(text) || bytes.IndexByte(text[colon+1:], ':') >= 0 {
		return text, nil
	}
	return text[:colon], text[colon+1:]
}

// parsePort reads a port from 1 to 65535 in decimal.
func parsePort(text []byte) (port uint16, ok bool) {
	if len(text) == 0 || len(text) > 5 {
		return 0, false
	}
	n := uint32(0)
	for _, c := range text {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint32(c-'0')
	}
	return uint16(n), n > 0 && n <= 0xffff
}

// parseAddress accepts exactly what netip.ParseAddr accepts and gives the same
// 16 bytes; a zone is checked and then forgotten. Unlike netip it allocates neither
// for a zone nor for an error, and errors are what host names make.
func parseAddress(text []byte) (ip address, ok bool) {
	for i, c := range text {
		switch c {
		case '.':
			return parseV4(text)
		case ':':
			return parseV6(text)
		case '%':
			return address{}, false
		}
		if i == 4 { // no field of either family is longer than four characters
			break
		}
	}
	return address{}, false
}

func parseV4(text []byte) (ip address, ok bool) {
	ip = address{10: 0xff, 11: 0xff}
	if !parseQuad(text, ip[12:]) {
		return address{}, false
	}
	return ip, true
}

// parseQuad reads four dotted decimal numbers into quad, which has four bytes.
func parseQuad(text, quad []byte) bool {
	field, digits, value := 0, 0, 0
	for _, c := range text {
		switch {
		case c >= '0' && c <= '9':
			if digits == 1 && value == 0 { // a leading zero may mean octal
				return false
			}
			value = value*10 + int(c-'0')
			if digits++; value > 255 {
				return false
			}
		case c == '.':
			if digits == 0 || field == 3 {
				return false
			}
			quad[field] = byte(value)
			field, digits, value = field+1, 0, 0
		default:
			return false
		}
	}
	if field != 3 || digits == 0 {
		return false
	}
	quad[3] = byte(value)
	return true
}

func parseV6(text []byte) (ip address, ok bool) {
	if zone := bytes.IndexByte(text, '%'); zone >= 0 {
		if zone+1 == len(text) {
			return address{}, false
		}
		text = text[:zone]
	}
	gap, n := -1, 0 // where "::" stands in ip, and how much of ip is read
	if len(text) >= 2 && text[0] == ':' && text[1] == ':' {
		gap, text = 0, text[2:]
	}
	for len(text) > 0 {
		if n == len(ip) {
			return address{}, false
		}
		group, digits := parseGroup(text)
		if digits == 0 {
			return address{}, false
		}
		if digits < len(text) && text[digits] == '.' {
			if n > len(ip)-4 || gap < 0 && n != len(ip)-4 || !parseQuad(text, ip[n:n+4]) {
				return address{}, false
			}
			n += 4
			break
		}
		ip[n], ip[n+1] = byte(group>>8), byte(group)
		n += 2
		if text = text[digits:]; len(text) == 0 {
			break
		}
		if text[0] != ':' || len(text) == 1 {
			return address{}, false
		}
		if text = text[1:]; text[0] == ':' {
			if gap >= 0 {
				return address{}, false
			}
			gap, text = n, text[1:]
		}
	}
	return ip.spread(gap, n)
}

// spread moves the bytes from gap to n to the end of the address and zeroes what they
// leave: "::" stands for as many groups as are missing, at least one.
func (a address) spread(gap, n int) (ip address, ok bool) {
	if gap < 0 || n == len(a) {
		return a, gap < 0 && n == len(a)
	}
	copy(ip[:gap], a[:gap])
	copy(ip[len(ip)-(n-gap):], a[gap:n])
	return ip, true
}

// parseGroup reads up to four hexadecimal digits. A fifth digit is left over,
// where no separator is, so that the caller refuses it.
func parseGroup(text []byte) (group uint16, digits int) {
	for digits < len(text) && digits < 4 {
		c := text[digits]
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return group, digits
		}
		group = group<<4 | uint16(c)
		digits++
	}
	return group, digits
}
