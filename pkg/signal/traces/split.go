package traces

import (
	"math"

	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// Record is one part of a request: itself an ExportTraceServiceRequest, with
// the spans of one Kafka partition.
type Record struct {
	Partition int
	Value     []byte // valid until the next Split; see Splitter
	Spans     int
	// Content is what the content hash is of: the record before its spans were judged by
	// time. Without spans out of the window it is Value itself. It is valid as long as Value.
	Content []byte
}

// Splitter regroups requests by partition. It keeps its buffers from one
// request to the next, so that a warm Splitter allocates nothing. The zero value is
// ready to use. A Splitter, and the records it returned, belong to one
// goroutine until the next call of Split.
type Splitter struct {
	segments  []segment
	resources []resourceRef
	scopes    []scopeRef
	spans     []spanRef
	order     []uint32 // indexes into spans, by partition, in the request's order
	starts    []int    // where each partition begins in order
	groups    []group  // of the record being written
	records   []Record
	out       []byte         // the records' values, one after the other
	budget    int            // how many bytes out may still grow by
	rejected  []rejectedSpan // the first few
}

// segment is a run of bytes of the request.
type segment struct{ from, to int }

// resourceRef is a ResourceSpans: everything in it but its scope_spans is
// copied as it stands, so that fields we do not know survive.
type resourceRef struct {
	segFrom, segTo int // in Splitter.segments
	size           int // bytes of those segments
}

// scopeRef is a ScopeSpans: everything in it but its spans.
type scopeRef struct {
	resource       int
	segFrom, segTo int
	size           int
}

// spanRef is a span with its tag and length that is accepted, or would be at another time.
type spanRef struct {
	scope     int
	from, to  int
	partition int32
	late      Reason // BadStartTime or BadEndTime: in Content, not in Value
}

// group is a run of spans of one scope in the record being written.
type group struct {
	scope        int
	from, to     int // in Splitter.order
	size         int // of the ScopeSpans' payload
	resourceSize int // of the ResourceSpans' payload, set at a resource's first group
}

// Options are the rules of a Split.
type Options struct {
	Partitions     int           // at least 1
	Window         signal.Window // in which spans must lie
	MaxRecordBytes int           // no record's value is larger
	SplitBytes     int           // a record with a larger value holds one span; 0 means MaxRecordBytes
}

// splitBytes is where records are split.
func (o *Options) splitBytes() int {
	if o.SplitBytes > 0 {
		return min(o.SplitBytes, o.MaxRecordBytes)
	}
	return o.MaxRecordBytes
}

// What the records of a request may have together is repeats times the bytes of the request, and spare bytes more. A
// resource is some five times as large as a span, so that requests become at most six times as much, where
// every span goes to another partition than its neighbours; without a bound, a resource made for it would be copied a
// hundred thousand times.
const (
	repeats = 8
	spare   = 8 << 20
)

// Split validates req and returns its spans as records: one for each partition
// that occurs, in ascending order of partitions, or more where SplitBytes forces it.
// Within a record spans keep their order, resource and scope stand once for
// each run of their spans. The same req under the same options always gives the same bytes,
// which is what the content hash and with it deduplication rest on. The records' Content does
// not depend on Options.Window: a request that is sent again may be judged at another time.
//
// Texts that are not UTF-8 are repaired as by [Repair]. Spans that cannot be stored are left
// out, counted by reason, and the first of them named; a record none of whose spans
// can be stored is left out too. The error is nil or ErrMalformed, and then nothing of req is to be stored.
func (s *Splitter) Split(req []byte, opts Options) ([]Record, Rejected, error) {
	req, rejected, err := s.walkOrRepair(req, &opts)
	if err != nil {
		return nil, Rejected{}, err
	}
	s.sort(opts.Partitions)
	s.reserve(req)
	s.budget = repeats*len(req) + spare
	for p := range opts.Partitions {
		s.writePartition(req, p, opts.splitBytes(), &rejected)
	}
	rejected.name(req, s.rejected)
	return s.records, rejected, nil
}

// Cut returns req in pieces of at most maxBytes, in the request's order; a span that is larger with its resource and
// scope is a piece of its own. No span is judged by its time. Those without usable ids are left out
// and counted, and so are those before which a huge resource would be repeated too often. The error is nil or ErrMalformed. What holds for the results of Split holds for these.
func (s *Splitter) Cut(req []byte, maxBytes int) ([]Record, Rejected, error) {
	req, rejected, err := s.walkOrRepair(req, &Options{Partitions: 1, Window: signal.Window{Latest: math.MaxUint64}, MaxRecordBytes: math.MaxInt})
	if err != nil {
		return nil, Rejected{}, err
	}
	s.sort(1)
	s.reserve(req)
	s.budget = 2*len(req) + spare // enough but for a resource that is made to be repeated
	s.writePartition(req, 0, maxBytes, &rejected)
	rejected.name(req, s.rejected)
	return s.records, rejected, nil
}

// walkOrRepair walks req, or what it is when repaired, which it returns.
func (s *Splitter) walkOrRepair(req []byte, opts *Options) ([]byte, Rejected, error) {
	var rejected Rejected
	if s.walk(req, opts, &rejected) {
		return req, rejected, nil
	}
	req, texts, err := Signal.Repair(nil, req)
	rejected = Rejected{RepairedTexts: texts}
	if err == nil && !s.walk(req, opts, &rejected) {
		err = signal.ErrMalformed
	}
	return req, rejected, err
}

func (s *Splitter) walk(req []byte, opts *Options, rejected *Rejected) bool {
	s.segments, s.resources, s.scopes, s.spans = s.segments[:0], s.resources[:0], s.scopes[:0], s.spans[:0]
	s.records, s.out, s.rejected = s.records[:0], s.out[:0], s.rejected[:0]
	for i := 0; i < len(req); {
		tag, lo, hi := signal.Next(req, i)
		if hi < 0 {
			return false
		}
		if tag == TagRequestResourceSpans && !s.walkResource(req[:hi], lo, opts, rejected) {
			return false
		}
		i = hi
	}
	return true
}

// walkResource walks the ResourceSpans that is b[i:]. Positions stay those of
// the request, of which b is the front. A resource or scope without a span that is
// kept leaves nothing behind: whoever sends many of them gets no memory for them.
func (s *Splitter) walkResource(b []byte, i int, opts *Options, rejected *Rejected) bool {
	r, firstScope := len(s.resources), len(s.scopes)
	ref := resourceRef{segFrom: len(s.segments)}
	// The resource's own fields and those of its scopes interleave, and each
	// must be one run in the list of segments, so the scopes are walked in a second pass.
	for j := i; j < len(b); {
		tag, lo, hi := signal.Next(b, j)
		if hi < 0 || tag != TagResourceSpansScopeSpans && !resourceSpans.ValidField(tag, b[lo:hi], depthResourceSpans) {
			return false
		}
		if tag != TagResourceSpansScopeSpans {
			s.addSegment(ref.segFrom, j, hi)
			ref.size += hi - j
		}
		j = hi
	}
	ref.segTo = len(s.segments)
	s.resources = append(s.resources, ref)
	for j := i; j < len(b); {
		tag, lo, hi := signal.Next(b, j)
		if tag == TagResourceSpansScopeSpans && !s.walkScope(b[:hi], lo, r, opts, rejected) {
			return false
		}
		j = hi
	}
	if len(s.scopes) == firstScope {
		s.resources, s.segments = s.resources[:r], s.segments[:ref.segFrom]
	}
	return true
}

// walkScope walks the ScopeSpans that is b[i:], of the newest resource r.
func (s *Splitter) walkScope(b []byte, i, r int, opts *Options, rejected *Rejected) bool {
	c, firstSpan := len(s.scopes), len(s.spans)
	ref := scopeRef{resource: r, segFrom: len(s.segments)}
	for i < len(b) {
		tag, lo, hi := signal.Next(b, i)
		if hi < 0 {
			return false
		}
		if tag == TagScopeSpansSpans {
			var head Head
			if !walkSpan(b[lo:hi], &head) {
				return false
			}
			switch reason := head.Judge(opts.Window); reason {
			case Accepted, BadStartTime, BadEndTime: // the other reasons depend on the span alone
				s.spans = append(s.spans, spanRef{
					scope: c, from: i, to: hi, partition: int32(Partition(head.TraceID, opts.Partitions)), late: reason,
				})
			default:
				s.reject(reason, hi, rejected)
			}
		} else {
			if !scopeSpans.ValidField(tag, b[lo:hi], depthScopeSpans) {
				return false
			}
			s.addSegment(ref.segFrom, i, hi)
			ref.size += hi - i
		}
		i = hi
	}
	ref.segTo = len(s.segments)
	s.dropTooLarge(firstSpan, opts.MaxRecordBytes-ref.size-s.resources[r].size-envelope, rejected)
	if len(s.spans) == firstSpan {
		s.segments = s.segments[:ref.segFrom]
	} else {
		s.scopes = append(s.scopes, ref)
	}
	return true
}

// walkSpan validates a span and takes out what it is judged by. As everywhere
// in protobuf, the last occurrence of a field counts.
func walkSpan(b []byte, head *Head) bool {
	for i := 0; i < len(b); {
		tag, lo, hi := signal.Next(b, i)
		if hi < 0 {
			return false
		}
		switch value := b[lo:hi]; tag {
		case TagSpanTraceID:
			head.TraceID = value
		case TagSpanSpanID:
			head.SpanID = value
		case TagSpanParentSpanID:
			head.ParentSpanID = value
		case TagSpanStartTime:
			head.Start = signal.Uint64(tag, value)
		case TagSpanEndTime:
			head.End = signal.Uint64(tag, value)
		default:
			if !span.ValidField(tag, value, depthSpan) {
				return false
			}
		}
		i = hi
	}
	return true
}

// reject counts a span that ends at req[to].
func (s *Splitter) reject(reason Reason, to int, rejected *Rejected) {
	rejected.Count[reason]++
	if len(s.rejected) < maxNamed {
		s.rejected = append(s.rejected, rejectedSpan{reason, to})
	}
}

// addSegment appends [from,to) to the segments since first, joining neighbours.
func (s *Splitter) addSegment(first, from, to int) {
	if n := len(s.segments); n > first && s.segments[n-1].to == from {
		s.segments[n-1].to = to
		return
	}
	s.segments = append(s.segments, segment{from, to})
}

// dropTooLarge rejects those of the spans since first that would not fit a
// record even alone.
func (s *Splitter) dropTooLarge(first, limit int, rejected *Rejected) {
	keep := first
	for _, sp := range s.spans[first:] {
		if sp.to-sp.from > limit {
			s.reject(TooLarge, sp.to, rejected)
			continue
		}
		s.spans[keep] = sp
		keep++
	}
	s.spans = s.spans[:keep]
}

// envelope bounds the tags and lengths around a ResourceSpans and a ScopeSpans.
const envelope = 2 * (1 + 5)

// sort fills order and starts: a counting sort of the spans by partition.
func (s *Splitter) sort(partitions int) {
	s.starts = append(s.starts[:0], make([]int, partitions+1)...)
	for i := range s.spans {
		s.starts[s.spans[i].partition+1]++
	}
	for p := range partitions {
		s.starts[p+1] += s.starts[p]
	}
	s.order = append(s.order[:0], make([]uint32, len(s.spans))...)
	for i := range s.spans {
		p := s.spans[i].partition
		s.order[s.starts[p]] = uint32(i)
		s.starts[p]++
	}
	// Every start has moved to the next partition's: move them back.
	copy(s.starts[1:], s.starts[:partitions])
	s.starts[0] = 0
}

// reserve makes out large enough for most requests at once. Records already
// written keep their bytes when it still has to grow: they point into the old array.
func (s *Splitter) reserve(req []byte) {
	if want := len(req) + len(req)/2; cap(s.out) < want {
		s.out = make([]byte, 0, want)
	}
}

// writePartition writes the records of partition p. Spans for which nothing is left of the budget are rejected.
// Where one record ends and the next begins depends on all spans, those out of the window included.
func (s *Splitter) writePartition(req []byte, p, splitBytes int, rejected *Rejected) {
	s.groups = s.groups[:0]
	total, spans, late := 0, 0, 0 // of the record so far; total is an upper bound
	for o := s.starts[p]; o < s.starts[p+1]; o++ {
		sp := &s.spans[s.order[o]]
		size := sp.to - sp.from
		added := size + s.overhead(sp.scope)
		if total+added > splitBytes && spans > 0 {
			s.writeRecord(req, p, spans, late)
			s.groups, total, spans, late = s.groups[:0], 0, 0, 0
			added = size + s.overhead(sp.scope)
		}
		if added > s.budget {
			s.budget = 0 // nor does a smaller one get in, whose neighbours are left out
			s.reject(TooLarge, sp.to, rejected)
			continue
		}
		s.budget -= added
		if n := len(s.groups); n == 0 || s.groups[n-1].scope != sp.scope {
			s.groups = append(s.groups, group{scope: sp.scope, from: o, size: s.scopes[sp.scope].size})
		}
		g := &s.groups[len(s.groups)-1]
		g.to = o + 1
		g.size += size
		total += added
		spans++
		if sp.late != Accepted {
			late++
			s.reject(sp.late, sp.to, rejected)
		}
	}
	if spans > 0 {
		s.writeRecord(req, p, spans, late)
	}
}

// overhead bounds the bytes that a span of this scope adds beside its own:
// nothing, or a new scope, or a new resource and scope.
func (s *Splitter) overhead(scope int) int {
	n := len(s.groups)
	if n > 0 && s.groups[n-1].scope == scope {
		return 0
	}
	size := s.scopes[scope].size + envelope
	resource := s.scopes[scope].resource
	if n == 0 || s.scopes[s.groups[n-1].scope].resource != resource {
		size += s.resources[resource].size
	}
	return size
}

// writeRecord writes the groups gathered, of so many spans, as one record. The late ones of
// them are only in its Content.
func (s *Splitter) writeRecord(req []byte, p, spans, late int) {
	if spans == late {
		return
	}
	content := s.writeGroups(req)
	value := content
	if late > 0 {
		s.dropLate()
		value = s.writeGroups(req)
	}
	s.records = append(s.records, Record{Partition: p, Value: value, Spans: spans - late, Content: content})
}

// dropLate makes the groups those of the spans that are not late.
func (s *Splitter) dropLate() {
	all := s.groups
	s.groups = all[:0] // no group becomes two
	for _, g := range all {
		run := group{scope: g.scope, size: s.scopes[g.scope].size}
		kept := g.from
		for o := g.from; o < g.to; o++ {
			sp := &s.spans[s.order[o]]
			if sp.late != Accepted {
				continue
			}
			s.order[kept] = s.order[o]
			kept++
			run.size += sp.to - sp.from
		}
		if run.from, run.to = g.from, kept; run.from < run.to {
			s.groups = append(s.groups, run)
		}
	}
}

// writeGroups appends the groups gathered to out and returns them.
func (s *Splitter) writeGroups(req []byte) []byte {
	first := 0
	for g := range s.groups {
		resource := s.scopes[s.groups[g].scope].resource
		if g == 0 || s.scopes[s.groups[first].scope].resource != resource {
			first = g
			s.groups[first].resourceSize = s.resources[resource].size
		}
		s.groups[first].resourceSize += signal.SizeBytesTag(s.groups[g].size) + s.groups[g].size
	}
	begin := len(s.out)
	for g := range s.groups {
		grp := &s.groups[g]
		scope := &s.scopes[grp.scope]
		if grp.resourceSize > 0 {
			r := &s.resources[scope.resource]
			s.out = signal.AppendBytesTag(s.out, TagRequestResourceSpans, grp.resourceSize)
			s.copySegments(req, r.segFrom, r.segTo)
		}
		s.out = signal.AppendBytesTag(s.out, TagResourceSpansScopeSpans, grp.size)
		s.copySegments(req, scope.segFrom, scope.segTo)
		s.copySpans(req, grp)
	}
	return s.out[begin:len(s.out):len(s.out)]
}

func (s *Splitter) copySegments(req []byte, from, to int) {
	for _, seg := range s.segments[from:to] {
		s.out = append(s.out, req[seg.from:seg.to]...)
	}
}

// copySpans copies the spans of a group, neighbours in one go.
func (s *Splitter) copySpans(req []byte, g *group) {
	for o := g.from; o < g.to; {
		sp := &s.spans[s.order[o]]
		from, to := sp.from, sp.to
		for o++; o < g.to; o++ {
			next := &s.spans[s.order[o]]
			if next.from != to {
				break
			}
			to = next.to
		}
		s.out = append(s.out, req[from:to]...)
	}
}
