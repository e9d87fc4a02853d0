package signal

import "math"

// Record is one part of a request: itself a request, with the items of one
// Kafka partition.
type Record struct {
	Partition int
	Value     []byte // valid until the next Split; see Splitter
	Items     int
	// Content is what the content hash is of: the record before its items were
	// judged by time. Without late items it is Value itself. It is valid as long
	// as Value.
	Content []byte
}

// Splitter regroups the requests of one signal by partition. It keeps its
// buffers from one request to the next, so that a warm Splitter allocates
// nothing. A Splitter, and the records it returned, belong to one goroutine
// until the next call of Split. Make one with Signal.NewSplitter.
type Splitter struct {
	signal *Signal
	forms  []*Message // of a group at each level; the request is level 0
	leaf   int        // the level of the groups that hold the items

	segments []segment
	groups   []group // the request first
	items    []itemRef
	order    []uint32 // indexes into items, by partition, in the request's order
	starts   []int    // where each partition begins in order
	planned  []run    // of all records, one record after the other
	plans    []plan   // of all records
	runs     []run    // of the record being written, a part of planned
	sizes    []int    // of the record being written: see measure
	records  []Record
	out      []byte         // the records' values, one after the other
	room     int            // a bound of the bytes that out will get
	budget   int            // how many bytes of the request records may still repeat
	rejected []rejectedItem // the first few
}

// segment is a run of bytes of the request.
type segment struct{ from, to int }

// group is a message with items somewhere below. A record repeats everything in
// it but its groups or items, as it stands, so that unknown fields survive.
type group struct {
	parent         int // in Splitter.groups
	segFrom, segTo int // in Splitter.segments
	size           int // bytes of those segments
}

// itemRef is an item with its tag and length that is accepted, or late.
type itemRef struct {
	group     int
	from, to  int
	partition int32
	late      Reason // why it is in Content and not in Value
}

// run is neighbours of one group in the record being written.
type run struct {
	group    int
	from, to int // in Splitter.order
	size     int // of the group's payload
}

// plan is a record that is to be written.
type plan struct {
	partition int
	from, to  int // in Splitter.planned
	items     int
	late      int // of these items
}

// Options are the rules of a Split.
type Options struct {
	Partitions     int    // at least 1
	Window         Window // in which items must lie
	MaxRecordBytes int    // no record's value is larger
	SplitBytes     int    // a record with a larger value holds one item; 0 means MaxRecordBytes

	// Buffer returns memory of at least this size for the records, which stay valid as long as it
	// does. Nil means memory of the Splitter.
	Buffer func(size int) []byte
}

// splitBytes is where records are split.
func (o *Options) splitBytes() int {
	if o.SplitBytes > 0 {
		return min(o.SplitBytes, o.MaxRecordBytes)
	}
	return o.MaxRecordBytes
}

// NewSplitter returns a Splitter of requests of s.
func (s *Signal) NewSplitter() *Splitter {
	sp := &Splitter{signal: s, leaf: len(s.Path) - 1}
	form := s.Message
	for _, tag := range s.Path {
		sp.forms = append(sp.forms, form)
		form = form.fieldOf(tag).sub
	}
	return sp
}

// Split validates req and returns its items as records: one for each partition
// that occurs, in ascending order of partitions, or more where SplitBytes
// forces it. Within a record items keep their order, and each group stands once
// for each run of its items. The same req under the same options always gives
// the same bytes: the content hash rests on that, and deduplication on the hash.
// The records' Content does not depend on Options.Window: a request that is
// sent again may be judged at another time.
//
// Split repairs texts that are not UTF-8. It leaves out the items that cannot
// be stored, counts them by reason and names the first of them; it also leaves
// out a record none of whose items can be stored. The error is nil or
// ErrMalformed, and then nothing of req is to be stored.
func (s *Splitter) Split(req []byte, opts Options) ([]Record, Rejected, error) {
	req, rejected, err := s.walkOrRepair(req, &opts)
	if err != nil {
		return nil, Rejected{}, err
	}
	s.sort(opts.Partitions)
	s.budget = s.signal.Repeats*len(req) + s.signal.Spare
	for p := range opts.Partitions {
		s.planPartition(p, opts.splitBytes(), &rejected)
	}
	s.write(req, opts.Buffer)
	s.signal.name(&rejected, req, s.rejected)
	return s.records, rejected, nil
}

// Cut returns req in pieces of at most maxBytes, in the request's order; an item
// that is larger with its groups is a piece of its own. Cut judges no item by
// its time. It leaves out and counts the items that no server stores at any
// time, and those before which a huge group would be repeated too often. The
// error is nil or ErrMalformed. The results are valid as long as those of Split.
func (s *Splitter) Cut(req []byte, maxBytes int) ([]Record, Rejected, error) {
	req, rejected, err := s.walkOrRepair(req, &Options{Partitions: 1, Window: Window{Latest: math.MaxUint64}, MaxRecordBytes: math.MaxInt})
	if err != nil {
		return nil, Rejected{}, err
	}
	s.sort(1)
	s.budget = 2*len(req) + s.signal.Spare // enough but for a group that is made to be repeated
	s.planPartition(0, maxBytes, &rejected)
	s.write(req, nil)
	s.signal.name(&rejected, req, s.rejected)
	return s.records, rejected, nil
}

// walkOrRepair walks req, or its repaired form, and returns what it walked.
func (s *Splitter) walkOrRepair(req []byte, opts *Options) ([]byte, Rejected, error) {
	var rejected Rejected
	if s.walk(req, opts, &rejected) {
		return req, rejected, nil
	}
	req, texts, err := s.signal.Repair(nil, req)
	rejected = Rejected{RepairedTexts: texts}
	if err == nil && !s.walk(req, opts, &rejected) {
		err = ErrMalformed
	}
	return req, rejected, err
}

func (s *Splitter) walk(req []byte, opts *Options, rejected *Rejected) bool {
	s.segments, s.groups, s.items = s.segments[:0], s.groups[:0], s.items[:0]
	s.records, s.out, s.rejected = s.records[:0], s.out[:0], s.rejected[:0]
	s.planned, s.plans, s.room = s.planned[:0], s.plans[:0], 0
	return s.walkGroup(req, 0, 0, 0, opts, rejected)
}

// walkGroup walks the group of a level that is b[i:]. Positions stay those of
// the request, of which b is the front. A group without an item that is kept
// leaves nothing behind, so a sender of many such groups takes up no memory.
func (s *Splitter) walkGroup(b []byte, i, level, parent int, opts *Options, rejected *Rejected) bool {
	if level == s.leaf {
		return s.walkLeaf(b, i, parent, opts, rejected)
	}
	g, first := len(s.groups), len(s.items)
	ref := group{parent: parent, segFrom: len(s.segments)}
	form, depth, child := s.forms[level], Depth-level, s.signal.Path[level]
	// A group's own fields and those of its groups interleave, and each must be
	// one run in the list of segments, so a second pass walks the groups.
	for j := i; j < len(b); {
		tag, lo, hi := Next(b, j)
		if hi < 0 || tag != child && !form.ValidField(tag, b[lo:hi], depth) {
			return false
		}
		if tag != child && s.keeps(level) {
			s.addSegment(&ref, j, hi)
		}
		j = hi
	}
	ref.segTo = len(s.segments)
	s.groups = append(s.groups, ref)
	for j := i; j < len(b); {
		tag, lo, hi := Next(b, j)
		if tag == child && !s.walkGroup(b[:hi], lo, level+1, g, opts, rejected) {
			return false
		}
		j = hi
	}
	if len(s.items) == first && level > 0 {
		s.groups, s.segments = s.groups[:g], s.segments[:ref.segFrom]
	}
	return true
}

// keeps reports whether records have the own fields of groups of a level.
func (s *Splitter) keeps(level int) bool { return level > 0 || s.signal.Envelope }

// walkLeaf walks the group b[i:] that holds items.
func (s *Splitter) walkLeaf(b []byte, i, parent int, opts *Options, rejected *Rejected) bool {
	g, first := len(s.groups), len(s.items)
	ref := group{parent: parent, segFrom: len(s.segments)}
	form, depth, child, keeps := s.forms[s.leaf], Depth-s.leaf, s.signal.Path[s.leaf], s.keeps(s.leaf)
	for i < len(b) {
		tag, lo, hi := Next(b, i)
		if hi < 0 {
			return false
		}
		if tag == child {
			verdict, ok := s.signal.Judge(b[lo:hi], opts.Window)
			if !ok {
				return false
			}
			if verdict.Reason == Accepted || verdict.Late {
				s.items = append(s.items, itemRef{
					group: g, from: i, to: hi, partition: int32(verdict.Hash % uint64(opts.Partitions)), late: verdict.Reason,
				})
			} else {
				s.reject(verdict.Reason, hi, rejected)
			}
		} else {
			if !form.ValidField(tag, b[lo:hi], depth) {
				return false
			}
			if keeps {
				s.addSegment(&ref, i, hi)
			}
		}
		i = hi
	}
	ref.segTo = len(s.segments)
	s.groups = append(s.groups, ref)
	s.dropTooLarge(first, opts.MaxRecordBytes-s.around(g), rejected)
	if len(s.items) == first && s.leaf > 0 {
		s.groups, s.segments = s.groups[:g], s.segments[:ref.segFrom]
	}
	return true
}

// tagBytes bounds the tag and the length before a group.
const tagBytes = 1 + 5

// around bounds the bytes that a record has beside its only item, of group g.
func (s *Splitter) around(g int) int {
	size := s.leaf * tagBytes
	for level := s.leaf; ; level-- {
		size += s.groups[g].size
		if level == 0 {
			return size
		}
		g = s.groups[g].parent
	}
}

// reject counts an item that ends at req[to].
func (s *Splitter) reject(reason Reason, to int, rejected *Rejected) {
	rejected.Count[reason]++
	if len(s.rejected) < maxNamed {
		s.rejected = append(s.rejected, rejectedItem{reason, to})
	}
}

// addSegment adds [from, to) to a group whose segments are the last, joining
// neighbours.
func (s *Splitter) addSegment(g *group, from, to int) {
	g.size += to - from
	if n := len(s.segments); n > g.segFrom && s.segments[n-1].to == from {
		s.segments[n-1].to = to
		return
	}
	s.segments = append(s.segments, segment{from, to})
}

// dropTooLarge rejects those of the items since first that would not fit a
// record even alone.
func (s *Splitter) dropTooLarge(first, limit int, rejected *Rejected) {
	keep := first
	for _, it := range s.items[first:] {
		if it.to-it.from > limit {
			s.reject(TooLarge, it.to, rejected)
			continue
		}
		s.items[keep] = it
		keep++
	}
	s.items = s.items[:keep]
}

// sort fills order and starts: a counting sort of the items by partition.
func (s *Splitter) sort(partitions int) {
	s.starts = append(s.starts[:0], make([]int, partitions+1)...)
	for i := range s.items {
		s.starts[s.items[i].partition+1]++
	}
	for p := range partitions {
		s.starts[p+1] += s.starts[p]
	}
	s.order = append(s.order[:0], make([]uint32, len(s.items))...)
	for i := range s.items {
		p := s.items[i].partition
		s.order[s.starts[p]] = uint32(i)
		s.starts[p]++
	}
	// Every start has moved to the next partition's: move them back.
	copy(s.starts[1:], s.starts[:partitions])
	s.starts[0] = 0
}

// planPartition plans the records of partition p. It rejects items for which nothing is left
// of the budget. Where one record ends and the next begins depends on all items, late ones
// included.
func (s *Splitter) planPartition(p, splitBytes int, rejected *Rejected) {
	envelope := s.groups[0].size
	if s.leaf == 0 {
		envelope = 0 // the run's group is the request
	}
	next := plan{partition: p, from: len(s.planned)}
	total := envelope // of the record so far, an upper bound
	for o := s.starts[p]; o < s.starts[p+1]; o++ {
		it := &s.items[s.order[o]]
		size := it.to - it.from
		added := size + s.overhead(next.from, it.group)
		if total+added > splitBytes && next.items > 0 {
			s.plan(next, total)
			next, total = plan{partition: p, from: len(s.planned)}, envelope
			added = size + s.overhead(next.from, it.group)
		}
		cost := added
		if next.items == 0 {
			cost += envelope
		}
		if cost > s.budget {
			s.budget = 0 // nor does a smaller one get in, whose neighbours are left out
			s.reject(TooLarge, it.to, rejected)
			continue
		}
		s.budget -= cost
		if n := len(s.planned); n == next.from || s.planned[n-1].group != it.group {
			s.planned = append(s.planned, run{group: it.group, from: o, size: s.groups[it.group].size})
		}
		r := &s.planned[len(s.planned)-1]
		r.to = o + 1
		r.size += size
		total += added
		next.items++
		if it.late != Accepted {
			next.late++
			s.reject(it.late, it.to, rejected)
		}
	}
	s.plan(next, total)
}

// plan adds a record of at most that many bytes, unless none of its items can be stored.
func (s *Splitter) plan(p plan, bytes int) {
	if p.items == p.late {
		s.planned = s.planned[:p.from]
		return
	}
	p.to = len(s.planned)
	s.plans = append(s.plans, p)
	if s.room += bytes; p.late > 0 {
		s.room += bytes // its value is apart from its content
	}
}

// write writes the planned records.
func (s *Splitter) write(req []byte, buffer func(size int) []byte) {
	switch {
	case buffer != nil:
		s.out = buffer(s.room)[:0]
		defer func() { s.out = nil }()
	case cap(s.out) < s.room:
		s.out = make([]byte, 0, s.room)
	}
	for _, p := range s.plans {
		s.runs = s.planned[p.from:p.to]
		s.writeRecord(req, p)
	}
}

// overhead bounds the bytes that an item of group g adds beside its own to the record
// whose runs begin at first: nothing, or those of the groups that are not the last run's.
func (s *Splitter) overhead(first, g int) int {
	last := -1
	if n := len(s.planned); n > first {
		if last = s.planned[n-1].group; last == g {
			return 0
		}
	}
	size := s.leaf*tagBytes + s.groups[g].size
	for level := s.leaf - 1; level > 0; level-- {
		g = s.groups[g].parent
		if last >= 0 {
			if last = s.groups[last].parent; last == g {
				break
			}
		}
		size += s.groups[g].size
	}
	return size
}

// writeRecord writes the runs as one record. The late ones of its items are only in its
// Content.
func (s *Splitter) writeRecord(req []byte, p plan) {
	content := s.writeRuns(req)
	value := content
	if p.late > 0 {
		s.dropLate()
		value = s.writeRuns(req)
	}
	s.records = append(s.records, Record{Partition: p.partition, Value: value, Items: p.items - p.late, Content: content})
}

// dropLate makes the runs those of the items that are not late.
func (s *Splitter) dropLate() {
	all := s.runs
	s.runs = all[:0] // no run becomes two
	for _, r := range all {
		left := run{group: r.group, from: r.from, size: s.groups[r.group].size}
		kept := r.from
		for o := r.from; o < r.to; o++ {
			it := &s.items[s.order[o]]
			if it.late != Accepted {
				continue
			}
			s.order[kept] = s.order[o]
			kept++
			left.size += it.to - it.from
		}
		if left.to = kept; left.from < left.to {
			s.runs = append(s.runs, left)
		}
	}
}

// writeRuns appends the runs gathered to out and returns them.
func (s *Splitter) writeRuns(req []byte) []byte {
	s.measure()
	begin := len(s.out)
	if s.leaf > 0 {
		s.copyFields(req, 0)
	}
	for i := range s.runs {
		r := &s.runs[i]
		for level := s.opens(i); level < s.leaf; level++ {
			s.out = AppendBytesTag(s.out, s.signal.Path[level-1], s.sizes[i*s.leaf+level])
			s.copyFields(req, s.ancestor(r.group, level))
		}
		if s.leaf > 0 {
			s.out = AppendBytesTag(s.out, s.signal.Path[s.leaf-1], r.size)
		}
		s.copyFields(req, r.group)
		s.copyItems(req, r)
	}
	return s.out[begin:len(s.out):len(s.out)]
}

// measure fills sizes: for run i, sizes[i*leaf+level] is the size of the group
// of that level that begins there.
func (s *Splitter) measure() {
	if s.leaf < 2 {
		return
	}
	s.sizes = append(s.sizes[:0], make([]int, len(s.runs)*s.leaf)...)
	for i := len(s.runs) - 1; i >= 0; i-- {
		below := SizeBytesTag(s.runs[i].size) + s.runs[i].size
		at := s.sizes[i*s.leaf:]
		opens := s.opens(i)
		for level := s.leaf - 1; level > 0; level-- {
			at[level] += below
			if level < opens { // it goes on from the run before, which takes over the sum
				below = 0
				s.sizes[(i-1)*s.leaf+level] += at[level]
				continue
			}
			at[level] += s.groups[s.ancestor(s.runs[i].group, level)].size
			below = SizeBytesTag(at[level]) + at[level]
		}
	}
}

// opens returns the first level whose group is another one for run i than for
// the run before.
func (s *Splitter) opens(i int) int {
	opens := s.leaf
	if i == 0 {
		return min(1, opens)
	}
	g, before := s.runs[i].group, s.runs[i-1].group
	for level := s.leaf - 1; level > 0; level-- {
		if g, before = s.groups[g].parent, s.groups[before].parent; g == before {
			break
		}
		opens = level
	}
	return opens
}

// ancestor returns the group of a level that has the leaf g below it.
func (s *Splitter) ancestor(g, level int) int {
	for range s.leaf - level {
		g = s.groups[g].parent
	}
	return g
}

func (s *Splitter) copyFields(req []byte, g int) {
	for _, seg := range s.segments[s.groups[g].segFrom:s.groups[g].segTo] {
		s.out = append(s.out, req[seg.from:seg.to]...)
	}
}

// copyItems copies the items of a run, neighbours in one go.
func (s *Splitter) copyItems(req []byte, r *run) {
	for o := r.from; o < r.to; {
		it := &s.items[s.order[o]]
		from, to := it.from, it.to
		for o++; o < r.to; o++ {
			next := &s.items[s.order[o]]
			if next.from != to {
				break
			}
			to = next.to
		}
		s.out = append(s.out, req[from:to]...)
	}
}
