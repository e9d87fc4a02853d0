package dns

import (
	"encoding/binary"
	"net/netip"

	"github.com/cespare/xxhash/v2"
)

// tally adds up the exchanges of one subject: quiet ones, and those to be
// reported at once.
type tally struct {
	quiet, bad sums
	absent     bool  // all of bad is NXDOMAIN
	noticed    int64 // when bad began to fill
	reported   int64 // when bad was last reported
	resolved   int64 // the last answer without an error
	touched    int64 // the last report of quiet, or the beginning
	ends       [2]int64
}

// sums are those of a record.
type sums struct {
	start, end                    int64
	queries, failures, unanswered uint32
	time                          uint64
	max                           uint32
	code                          string
	port                          uint16 // 0 if there are several
}

func (s *sums) any() bool { return s.end != 0 }

func (s *sums) add(o *sums) {
	if !s.any() {
		*s = *o
		return
	}
	s.start, s.end = min(s.start, o.start), max(s.end, o.end)
	s.queries += o.queries
	s.failures += o.failures
	s.unanswered += o.unanswered
	s.time += o.time
	s.max = max(s.max, o.max)
	if o.code != "" {
		s.code = o.code
	}
	if s.port != o.port {
		s.port = 0
	}
}

// tally returns the tally of a question's subject, or nil if there are too
// many.
func (t *Table) tally(sp *space, q *question) *tally {
	s := subject{q.client.Addr(), q.resolver, q.name}
	if y := sp.subjects[s]; y != nil {
		return y
	}
	if t.stats.Subjects >= maxSubjects || len(sp.subjects) >= maxSubjectsPerSpace {
		t.stats.Untracked++
		s.name = ""
		if y := sp.subjects[s]; y != nil {
			return y
		}
		// The rest of a client's names needs one more place.
		if t.stats.Subjects >= 2*maxSubjects || len(sp.subjects) >= 2*maxSubjectsPerSpace {
			return nil
		}
	}
	y := &tally{touched: q.began}
	sp.subjects[s] = y
	t.stats.Subjects++
	return y
}

// record adds an exchange that is reported at once.
func (sp *space) record(y *tally, o *sums) {
	absent := o.code == "NXDOMAIN" && o.unanswered == 0
	if !y.bad.any() {
		y.noticed, y.absent = o.end, absent
	}
	y.absent = y.absent && absent
	y.bad.add(o)
	sp.trouble = true
}

// report turns sums into a record and clears them.
func (t *Table) report(sp *space, s subject, y *tally, o *sums, bad bool) {
	if !o.any() {
		return
	}
	kind := 0
	if bad {
		kind = 1
	}
	if len(t.records) >= maxRecords {
		t.stats.Dropped++
		*o = sums{}
		return
	}
	r := Record{
		Start: o.start, End: max(o.end, y.ends[kind]+1), Namespace: sp.inode, Client: netip.AddrPortFrom(s.client, o.port), Resolver: s.resolver, Name: s.name, Code: o.code,
		Queries: o.queries, Failures: o.failures, Unanswered: o.unanswered, Time: o.time, MaxTime: o.max,
		Key: keyOf(s, kind),
	}
	y.ends[kind] = r.End
	*o = sums{}
	t.records = append(t.records, r)
}

// keyOf derives Record.Key; it is never 0.
func keyOf(s subject, kind int) uint64 {
	var b [1 + 16 + 2 + 255]byte
	ip := s.resolver.Addr().As16()
	b[0] = byte(kind)
	copy(b[1:], ip[:])
	binary.BigEndian.PutUint16(b[17:], s.resolver.Port())
	n := 19 + copy(b[19:], s.name)
	return max(xxhash.Sum64(b[:n]), 1)
}

// step moves all times by d.
func (y *tally) step(d int64) {
	for _, s := range []*sums{&y.quiet, &y.bad} {
		if s.any() {
			s.start, s.end = s.start+d, s.end+d
		}
	}
	y.noticed, y.reported, y.resolved, y.touched = y.noticed+d, y.reported+d, y.resolved+d, y.touched+d
	if d < 0 {
		return // ends must not repeat
	}
	y.ends[0], y.ends[1] = y.ends[0]+d, y.ends[1]+d
}
