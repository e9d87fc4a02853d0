package semconv

import "math/bits"

// family is a group of semantic conventions that describes one kind of call.
// The order is that of precedence, most specific first.
type family uint8

const (
	familyDatabase family = iota
	familyMessaging
	familyRPC
	familyGraphQL
	familyHTTP
	familyFaaS
	familyNone
)

// evidence is a set of families: those with a defining attribute in the low
// byte, those with a related one in the high byte.
type evidence uint16

// defining is the evidence of an attribute that no other family would carry.
func (f family) defining() evidence { return 1 << f }

// related is the evidence of an attribute that may stray onto other spans.
func (f family) related() evidence { return 1 << (f + 8) }

// family returns the family that decides: the most specific one that is
// defined, else the most specific one that is hinted at.
func (e evidence) family() family {
	if defined := uint8(e); defined != 0 {
		return family(bits.TrailingZeros8(defined))
	}
	if hinted := uint8(e >> 8); hinted != 0 {
		return family(bits.TrailingZeros8(hinted))
	}
	return familyNone
}
