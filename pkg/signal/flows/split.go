package flows

import "github.com/metaflowys/metaflow-server/pkg/signal"

// Record is one part of a request: itself an ExportFlowsRequest, with the flows
// of one Kafka partition.
type Record struct {
	Partition int
	Value     []byte // valid until the next Split; see Splitter
	Flows     int
}

// Options are the rules of a Split.
type Options struct {
	Partitions     int           // at least 1
	Window         signal.Window // in which flows must lie
	MaxRecordBytes int           // no record's value is larger
	SplitBytes     int           // a record with a larger value holds one flow; 0 means MaxRecordBytes
}

// splitBytes is where records are split.
func (o *Options) splitBytes() int {
	if o.SplitBytes > 0 {
		return min(o.SplitBytes, o.MaxRecordBytes)
	}
	return o.MaxRecordBytes
}

// Splitter regroups requests by partition. It keeps its buffers from one
// request to the next, so that a warm Splitter allocates nothing. The zero value is
// ready to use. A Splitter, and the records it returned, belong to one
// goroutine until the next call of Split.
type Splitter struct {
	segments []segment
	index    int      // of the flow being walked, counting all of the request from 0
	head     fields   // of the request
	groups   []fields // of each FlowGroup with flows
	flows    []flowRef
	order    []uint32 // indexes into flows, by partition, in the request's order
	starts   []int    // where each partition begins in order
	runs     []run    // of the record being written
	records  []Record
	out      []byte // the records' values, one after the other
	budget   int    // how many bytes out may still grow by
}

// segment is a run of bytes of the request.
type segment struct{ from, to int }

// fields are what a message has beside its repeated parts. They are copied as they stand, so
// that those we do not know survive.
type fields struct {
	segFrom, segTo int // in Splitter.segments
	size           int // bytes of those segments
}

// flowRef is an accepted flow with its tag and length.
type flowRef struct {
	group     int
	from, to  int
	partition int
}

// run is flows of one group in the record being written.
type run struct {
	group    int
	from, to int // in Splitter.order
	size     int // of the FlowGroup's payload
}

// envelope bounds the tag and length before a FlowGroup.
const envelope = 1 + 5

// What the records of a request may have together is repeats times the bytes of the request, and spare bytes more. An
// agent's requests have some 200 kB and become at most six times as much, where every flow goes to
// another partition than its neighbours; without a bound, fields made for it would be copied a hundred thousand times.
const (
	repeats = 2
	spare   = 2 << 20
)

// Split validates req and returns its flows as records: one for each partition
// that occurs, in ascending order of partitions, or more where SplitBytes forces it.
// Within a record flows keep their order, the fields of the request stand once and
// those of a group once for each run of its flows. The same req under the same options always gives
// the same bytes, which is what the content hash and with it deduplication rest on.
//
// Texts that are not UTF-8 are repaired as by Repair. Flows that cannot be stored are left out,
// counted by reason, and the first of them named. The error is nil or otlp.ErrMalformed, and
// then nothing of req is to be stored.
func (s *Splitter) Split(req []byte, opts Options) ([]Record, Rejected, error) {
	var rejected Rejected
	if !s.walk(req, &opts, &rejected) {
		repaired, texts, err := Signal.Repair(nil, req)
		if err != nil {
			return nil, Rejected{}, err
		}
		req, rejected = repaired, Rejected{RepairedTexts: texts}
		if !s.walk(req, &opts, &rejected) {
			return nil, Rejected{}, signal.ErrMalformed
		}
	}
	s.sort(opts.Partitions)
	s.reserve(req)
	s.budget = repeats*len(req) + spare
	for p := range opts.Partitions {
		s.writePartition(req, p, opts.splitBytes(), &rejected)
	}
	return s.records, rejected, nil
}

func (s *Splitter) walk(req []byte, opts *Options, rejected *Rejected) bool {
	s.segments, s.groups, s.flows = s.segments[:0], s.groups[:0], s.flows[:0]
	s.records, s.out, s.index = s.records[:0], s.out[:0], 0
	// The request's own fields, which may stand behind its groups, come first in the segments,
	// so the groups are walked in a second pass.
	s.head = fields{}
	for i := 0; i < len(req); {
		tag, lo, hi := signal.Next(req, i)
		if hi < 0 || !validOfRequest(tag, req[lo:hi]) {
			return false
		}
		if tag != TagRequestGroups {
			s.add(&s.head, i, hi)
		}
		i = hi
	}
	s.head.segTo = len(s.segments)
	for i := 0; i < len(req); {
		tag, lo, hi := signal.Next(req, i)
		if tag == TagRequestGroups && !s.walkGroup(req[:hi], lo, opts, rejected) {
			return false
		}
		i = hi
	}
	return true
}

// walkGroup walks the FlowGroup that is b[i:]. Positions stay those of the request, of which b is the
// front. A group without a flow that is kept leaves nothing behind.
func (s *Splitter) walkGroup(b []byte, i int, opts *Options, rejected *Rejected) bool {
	g, first := len(s.groups), len(s.flows)
	group := fields{segFrom: len(s.segments)}
	var f Flow
	for i < len(b) {
		tag, lo, hi := signal.Next(b, i)
		if hi < 0 || !validOfGroup(tag, b[lo:hi]) {
			return false
		}
		if tag != TagGroupFlows {
			s.add(&group, i, hi)
		} else {
			if !f.Read(b[lo:hi]) {
				return false
			}
			if reason := f.Judge(opts.Window); reason != Accepted {
				rejected.Count[reason]++
				rejected.name(s.index, &f)
			} else {
				s.flows = append(s.flows, flowRef{group: g, from: i, to: hi, partition: f.Partition(opts.Partitions)})
			}
			s.index++
		}
		i = hi
	}
	group.segTo = len(s.segments)
	s.dropTooLarge(first, opts.MaxRecordBytes-s.head.size-group.size-envelope, rejected)
	if len(s.flows) == first {
		s.segments = s.segments[:group.segFrom]
	} else {
		s.groups = append(s.groups, group)
	}
	return true
}

// add appends [from, to) to fields whose segments are the last, joining neighbours.
func (s *Splitter) add(f *fields, from, to int) {
	f.size += to - from
	if n := len(s.segments); n > f.segFrom && s.segments[n-1].to == from {
		s.segments[n-1].to = to
		return
	}
	s.segments = append(s.segments, segment{from, to})
}

// dropTooLarge rejects the flows since first that would not fit a record even alone.
func (s *Splitter) dropTooLarge(first, limit int, rejected *Rejected) {
	keep := first
	for _, f := range s.flows[first:] {
		if f.to-f.from > limit {
			rejected.Count[TooLarge]++
			continue
		}
		s.flows[keep] = f
		keep++
	}
	s.flows = s.flows[:keep]
}

// sort fills order and starts: a counting sort of the flows by partition.
func (s *Splitter) sort(partitions int) {
	s.starts = append(s.starts[:0], make([]int, partitions+1)...)
	for i := range s.flows {
		s.starts[s.flows[i].partition+1]++
	}
	for p := range partitions {
		s.starts[p+1] += s.starts[p]
	}
	s.order = append(s.order[:0], make([]uint32, len(s.flows))...)
	for i := range s.flows {
		p := s.flows[i].partition
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

// writePartition writes the records of partition p. Flows for which nothing is left of the budget are rejected.
func (s *Splitter) writePartition(req []byte, p, splitBytes int, rejected *Rejected) {
	s.runs = s.runs[:0]
	total := s.head.size // of the record so far, an upper bound
	flows := 0
	for o := s.starts[p]; o < s.starts[p+1]; o++ {
		f := &s.flows[s.order[o]]
		size := f.to - f.from
		added := size + s.overhead(f.group)
		if total+added > splitBytes && flows > 0 {
			s.writeRecord(req, p, flows)
			s.runs, total, flows = s.runs[:0], s.head.size, 0
			added = size + s.overhead(f.group)
		}
		cost := added
		if flows == 0 {
			cost += s.head.size
		}
		if cost > s.budget {
			s.budget = 0 // nor does a smaller one get in, whose neighbours are left out
			rejected.Count[TooLarge]++
			continue
		}
		s.budget -= cost
		if n := len(s.runs); n == 0 || s.runs[n-1].group != f.group {
			s.runs = append(s.runs, run{group: f.group, from: o, size: s.groups[f.group].size})
		}
		r := &s.runs[len(s.runs)-1]
		r.to = o + 1
		r.size += size
		total += added
		flows++
	}
	if flows > 0 {
		s.writeRecord(req, p, flows)
	}
}

// overhead bounds the bytes that a flow of this group adds beside its own: nothing, or
// a group.
func (s *Splitter) overhead(group int) int {
	if n := len(s.runs); n > 0 && s.runs[n-1].group == group {
		return 0
	}
	return s.groups[group].size + envelope
}

// writeRecord writes the runs gathered as one record.
func (s *Splitter) writeRecord(req []byte, p, flows int) {
	begin := len(s.out)
	s.copyFields(req, &s.head)
	for i := range s.runs {
		r := &s.runs[i]
		s.out = signal.AppendBytesTag(s.out, TagRequestGroups, r.size)
		s.copyFields(req, &s.groups[r.group])
		s.copyFlows(req, r)
	}
	s.records = append(s.records, Record{Partition: p, Value: s.out[begin:len(s.out):len(s.out)], Flows: flows})
}

func (s *Splitter) copyFields(req []byte, f *fields) {
	for _, seg := range s.segments[f.segFrom:f.segTo] {
		s.out = append(s.out, req[seg.from:seg.to]...)
	}
}

// copyFlows copies the flows of a run, neighbours in one go.
func (s *Splitter) copyFlows(req []byte, r *run) {
	for o := r.from; o < r.to; {
		f := &s.flows[s.order[o]]
		from, to := f.from, f.to
		for o++; o < r.to; o++ {
			next := &s.flows[s.order[o]]
			if next.from != to {
				break
			}
			to = next.to
		}
		s.out = append(s.out, req[from:to]...)
	}
}
