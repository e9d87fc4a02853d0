package traces

import (
	"slices"

	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// hostAddressKey is the attribute that AddHostAddress adds.
const hostAddressKey = "app.host.ip"

// leastWithSpan is the size of the smallest ResourceSpans with a span that has a
// trace id and a span id: 18 and 10 bytes, in a Span and a ScopeSpans of 2 each.
const leastWithSpan = 32

// tellsAddress reports whether a resource attribute says where the spans were
// recorded, so that the address of the sender is not needed, and might be wrong.
func tellsAddress(key []byte) bool {
	switch string(key) {
	case "k8s.pod.uid", "k8s.pod.ip", hostAddressKey, "host.ip", "net.host.ip":
		return true
	default:
		return false
	}
}

// AddHostAddress validates req, repairs texts in it that are not UTF-8, and says where
// its spans come from: it
// appends to dst a request in which every ResourceSpans whose resource has none of the
// attributes k8s.pod.uid, k8s.pod.ip, app.host.ip, host.ip and net.host.ip, or that has no resource at
// all, has app.host.ip with the value address, and returns how many were changed. All other
// bytes are copied as they stand. Where no address is added dst is not touched, and where nothing
// is repaired either, req itself is returned.
//
// A ResourceSpans that is too short for a span with ids is passed over, so that with
// the text of an IP address the result is never more than three times as large as the repaired req. An
// empty address changes nothing.
//
// out is valid as long as both dst's and req's bytes are. The error is nil or
// signal.ErrMalformed.
func AddHostAddress(dst, req []byte, address string) (out []byte, added int, err error) {
	if out, added, err = addHostAddress(dst, req, address); err == nil {
		return out, added, nil
	}
	repaired, _, err := Signal.Repair(nil, req)
	if err != nil {
		return nil, 0, err
	}
	return addHostAddress(dst, repaired, address)
}

func addHostAddress(dst, req []byte, address string) (out []byte, added int, err error) {
	w := addressWriter{req: req, address: address, out: dst}
	for i := 0; i < len(req); {
		tag, lo, hi := signal.Next(req, i)
		if hi < 0 {
			return nil, 0, signal.ErrMalformed
		}
		if tag == TagRequestResourceSpans {
			place, ok := placeForAddress(req[:hi], lo)
			if !ok {
				return nil, 0, signal.ErrMalformed
			}
			if !place.told && hi-lo >= leastWithSpan && address != "" {
				w.change(i, lo, hi, place)
			}
		}
		i = hi
	}
	if w.added == 0 {
		return req, 0, nil
	}
	return append(w.out, req[w.copied:]...), w.added, nil
}

// addressPlace is what AddHostAddress needs to know of a ResourceSpans.
type addressPlace struct {
	told         bool // an attribute says where the spans come from
	start        int  // of the last resource field with its tag and length
	valueLo, end int  // its value; end is 0 when there is no resource field
}

// placeForAddress validates the ResourceSpans that is b[i:]. Positions stay those of the request, of
// which b is the front.
//
// A field that stands more than once is merged, as protobuf wants it: the attributes of
// all resource fields together are the resource's.
func placeForAddress(b []byte, i int) (place addressPlace, ok bool) {
	for i < len(b) {
		tag, lo, hi := signal.Next(b, i)
		if hi < 0 {
			return place, false
		}
		if tag == TagResourceSpansResource {
			told, ok := resourceTellsAddress(b[lo:hi])
			if !ok {
				return place, false
			}
			place = addressPlace{told: place.told || told, start: i, valueLo: lo, end: hi}
		} else if !resourceSpans.ValidField(tag, b[lo:hi], depthResourceSpans) {
			return place, false
		}
		i = hi
	}
	return place, true
}

// resourceTellsAddress validates the Resource b and looks at the keys of its attributes.
func resourceTellsAddress(b []byte) (told, ok bool) {
	for i := 0; i < len(b); {
		tag, lo, hi := signal.Next(b, i)
		if hi < 0 || !resource.ValidField(tag, b[lo:hi], depthResourceSpans-1) {
			return false, false
		}
		if tag == TagResourceAttributes && !told {
			told = tellsAddress(keyOf(b[lo:hi]))
		}
		i = hi
	}
	return told, true
}

// keyOf returns the key of a valid KeyValue. Of several the last one counts.
func keyOf(kv []byte) (key []byte) {
	signal.Each(kv, signal.TagKeyValueKey, func(k []byte) { key = k })
	return key
}

// addressWriter writes the request that AddHostAddress returns.
type addressWriter struct {
	req     []byte
	address string
	out     []byte
	copied  int // so much of req has been taken over into out
	added   int
}

// change copies what stands before the ResourceSpans req[lo:hi], whose tag is at start, and then the
// ResourceSpans itself with the address in its resource.
func (w *addressWriter) change(start, lo, hi int, place addressPlace) {
	if w.added == 0 {
		// Enough for all but requests of very many resources.
		w.out = slices.Grow(w.out, len(w.req)+len(w.req)/32+256)
	}
	w.added++
	if place.end == 0 {
		place = addressPlace{start: lo, valueLo: lo, end: lo} // an empty resource, before all else
	}
	before, value, after := w.req[lo:place.start], w.req[place.valueLo:place.end], w.req[place.end:hi]
	attribute := w.attributeSize()
	resourceSize := len(value) + signal.SizeBytesTag(attribute) + attribute

	w.out = append(w.out, w.req[w.copied:start]...)
	w.out = signal.AppendBytesTag(w.out, TagRequestResourceSpans, len(before)+signal.SizeBytesTag(resourceSize)+resourceSize+len(after))
	w.out = append(w.out, before...)
	w.out = signal.AppendBytesTag(w.out, TagResourceSpansResource, resourceSize)
	w.out = append(w.out, value...)
	w.out = w.appendAttribute(attribute)
	w.out = append(w.out, after...)
	w.copied = hi
}

// attributeSize is the size of the KeyValue that is added, without tag and length.
func (w *addressWriter) attributeSize() int {
	value := signal.SizeBytesTag(len(w.address)) + len(w.address)
	return signal.SizeBytesTag(len(hostAddressKey)) + len(hostAddressKey) + signal.SizeBytesTag(value) + value
}

func (w *addressWriter) appendAttribute(size int) []byte {
	b := signal.AppendBytesTag(w.out, TagResourceAttributes, size)
	b = signal.AppendBytesTag(b, signal.TagKeyValueKey, len(hostAddressKey))
	b = append(b, hostAddressKey...)
	b = signal.AppendBytesTag(b, signal.TagKeyValueValue, signal.SizeBytesTag(len(w.address))+len(w.address))
	b = signal.AppendBytesTag(b, signal.TagAnyValueString, len(w.address))
	return append(b, w.address...)
}
