package otlptest

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
)

// Cardinalities of a shop of middling size. Popularity falls off as a power law.
const (
	userCount    = 200_000
	productCount = 3_000
)

// bytes returns n random bytes that are not all zero.
func (g *Generator) bytes(n int) []byte {
	b := make([]byte, 0, n+7)
	for len(b) < n {
		b = binary.BigEndian.AppendUint64(b, g.rng.Uint64())
	}
	b[n-1] |= 1
	return b[:n:n]
}

func (g *Generator) uuid() string { return uuid(g.bytes(16)) }

func uuid(b []byte) string {
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:32]
}

// address is that of a visitor.
func (g *Generator) address() string {
	n := g.rng.Uint32()
	return netip.AddrFrom4([4]byte{byte(60 + n%130), byte(n >> 8), byte(n >> 16), byte(n>>24) | 1}).String()
}

// chance is true with a probability of percent/100.
func (g *Generator) chance(percent float64) bool { return g.rng.Float64()*100 < percent }

// ephemeral is a client's port.
func (g *Generator) ephemeral() int { return 32768 + g.rng.IntN(28232) }

func userID(n uint64) string { return fmt.Sprintf("user-%06d", n*7919%userCount) }

// sessionID is a visitor's, who has one session.
func sessionID(user uint64) string {
	b := binary.BigEndian.AppendUint64(nil, (user+1)*0x9e3779b97f4a7c15)
	return uuid(binary.BigEndian.AppendUint64(b, (user+1)*0xbf58476d1ce4e5b9))
}

// productID is ten characters long, as the demo's are.
func productID(n uint64) string {
	const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	x := n*0x9e3779b97f4a7c15 + 0x1234567
	id := make([]byte, 10)
	for i := range id {
		id[i] = alphabet[x%36]
		x /= 36
	}
	return string(id)
}

var userAgents = [...]string{
	"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
	"Mozilla/5.0 (Macintosh; Intel Mac OS X 14_5) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Safari/605.1.15",
	"Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148",
	"Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0",
	"Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Mobile Safari/537.36",
	"python-requests/2.32.3",
}
