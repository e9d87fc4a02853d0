package kafka

import (
	"testing"
)

// FuzzAnswers checks the contract of the response readers for arbitrary bytes: no panic,
// and memory within a small multiple of the input.
func FuzzAnswers(f *testing.F) {
	const topic = "t"
	group := &Group{id: "g", topic: topic}
	claim := &Claim{group: group}
	claim.fetcher.id = TopicID{1}
	full := appendInt32(nil, 0)
	full = appendInt32(full, 1)
	full = appendString(full, topic)
	full = appendInt32(full, 1)
	full = appendInt32(full, 0)
	f.Add([]byte(nil))
	f.Add(full)
	f.Add([]byte{0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, in []byte) {
		read := func(name string, bad bool, sizes ...int) {
			for _, n := range sizes {
				if n > len(in)+1 {
					t.Errorf("%s: %d elements in %d bytes (bad: %t)", name, n, len(in), bad)
				}
			}
		}
		for _, version := range []int16{describeVersion, describeVersionFlexible, describeVersionID} {
			r := &answerReader{b: in}
			state, _ := readDescription(r, version, topic, 3)
			read("metadata", r.bad, len(state.partitions))
		}
		for _, version := range []int16{readVersionPlain, readVersion, readVersionID} {
			r := &answerReader{b: in}
			p, _, _ := claim.readCommitted(r, version)
			read("committed", r.bad, len(p.Metadata))
		}
		for _, version := range []int16{commitVersion, commitVersionID} {
			of := &commits{group: claim.group, topic: topicState{id: claim.fetcher.id}}
			codes := map[int]int16{}
			of.read(&answerReader{b: in}, version, codes, 1)
			read("commit", false, len(codes))
		}
		readEpochEnd(&answerReader{b: in}, topic, 0)
		known, _ := readVersions(&answerReader{b: in})
		read("versions", false, len(known))
		for _, version := range fetchByID {
			req := &fetchRequest{topic: topic, id: TopicID{1}}
			buf := append(make([]byte, correlationSize), in...)
			if res, err := req.parse(buf, version); err == nil {
				read("fetch", false, len(res.aborted), len(res.batches))
			}
		}
	})
}
