package kafka

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/pierrec/lz4/v4"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/fault"
)

var testTime = time.UnixMilli(1_700_000_000_000)

// logBatch returns a batch as stored in the log: n records "offset N" from offset first
// on.
func logBatch(compression string, first int64, n int) []byte {
	codec, err := codecByName(compression)
	if err != nil {
		panic(err)
	}
	var entries []entry
	for i := range n {
		entries = append(entries, entry{out: &Outgoing{Value: fmt.Appendf(nil, "offset %d", first+int64(i))}})
	}
	e := encoder{codec: codec}
	b := e.appendBatch(nil, entries, testTime)
	binary.BigEndian.PutUint64(b[batchAtOffset:], uint64(first))
	return b
}

// seal recomputes the checksum of a batch that a test has changed.
func seal(b []byte) []byte {
	binary.BigEndian.PutUint32(b[batchAtCRC:], crc32.Checksum(b[batchAtAttributes:], castagnoli))
	return b
}

func offsets(first, end int64) []delivery.Record {
	var records []delivery.Record
	for o := first; o < end; o++ {
		records = append(records, delivery.Record{Offset: o, Time: testTime, Value: fmt.Appendf(nil, "offset %d", o)})
	}
	return records
}

func TestDecode(t *testing.T) {
	join := func(batches ...[]byte) []byte { return bytes.Join(batches, nil) }
	control := logBatch("none", 5, 1)
	control[batchAtAttributes+1] |= attrControl
	seal(control)
	// Compaction has removed the records 12 to 19 of this batch and kept its end.
	compacted := logBatch("lz4", 10, 2)
	binary.BigEndian.PutUint32(compacted[batchAtLastDelta:], 9)
	seal(compacted)
	emptied := logBatch("none", 20, 1)[:batchHeaderSize]
	binary.BigEndian.PutUint32(emptied[batchAtLength:], batchHeaderSize-batchAtEpoch)
	binary.BigEndian.PutUint32(emptied[batchAtCount:], 0)
	binary.BigEndian.PutUint32(emptied[batchAtLastDelta:], 4)
	seal(emptied)

	tests := map[string]struct {
		data []byte
		from int64
		want Batch
	}{
		"nothing":                        {nil, 7, Batch{Next: 7}},
		"one batch":                      {logBatch("none", 0, 3), 0, Batch{Records: offsets(0, 3), Next: 3}},
		"begins before the offset":       {logBatch("zstd", 0, 9), 5, Batch{Records: offsets(5, 9), Next: 9}},
		"all before the offset":          {logBatch("zstd", 0, 3), 3, Batch{Next: 3}},
		"batches of several codecs":      {join(logBatch("lz4", 0, 2), logBatch("gzip", 2, 2), logBatch("snappy", 4, 1)), 1, Batch{Records: offsets(1, 5), Next: 5}},
		"the last one is cut off":        {join(logBatch("lz4", 0, 2), logBatch("lz4", 2, 2)[:70]), 0, Batch{Records: offsets(0, 2), Next: 2}},
		"cut off within the header":      {join(logBatch("lz4", 0, 2), logBatch("lz4", 2, 2)[:20]), 0, Batch{Records: offsets(0, 2), Next: 2}},
		"end of a transaction":           {join(control, logBatch("none", 6, 1)), 5, Batch{Records: offsets(6, 7), Next: 7}},
		"only the end of a transaction":  {control, 5, Batch{Next: 6}},
		"the end is compacted away":      {compacted, 10, Batch{Records: offsets(10, 12), Next: 20}},
		"everything is compacted away":   {emptied, 20, Batch{Next: 25}},
		"compacted up to a later offset": {logBatch("none", 30, 1), 20, Batch{Records: offsets(30, 31), Next: 31}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var d decoder
			for range 2 { // the second time with reused memory
				got, err := d.decode(tc.data, tc.from)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tc.want, got, ofLog, cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			}
		})
	}
}

// ofLog compares batches without their leader epochs.
var ofLog = cmp.Options{cmpopts.IgnoreUnexported(Batch{}), cmpopts.IgnoreFields(Batch{}, "LeaderEpoch")}

func TestLeaderEpoch(t *testing.T) {
	led := func(epoch uint32, b []byte) []byte {
		binary.BigEndian.PutUint32(b[batchAtEpoch:], epoch) // not part of the checksum
		return b
	}
	first, second := led(3, logBatch("lz4", 0, 2)), led(5, logBatch("none", 2, 2))
	spoilt := bytes.Clone(second)
	spoilt[len(spoilt)-1] ^= 1
	for name, tc := range map[string]struct {
		data []byte
		want int32
	}{
		"nothing":                   {nil, -1},
		"one leader":                {first, 3},
		"the later of two":          {append(bytes.Clone(first), second...), 5},
		"the one before the damage": {append(bytes.Clone(first), spoilt...), 3},
		"the one before the cut":    {append(bytes.Clone(first), second[:70]...), 3},
	} {
		var d decoder
		if got, err := d.decode(tc.data, 0); got.LeaderEpoch != tc.want || err != nil {
			t.Errorf("%s: leader epoch %d, %v; want %d", name, got.LeaderEpoch, err, tc.want)
		}
	}
}

func TestLogAppendTime(t *testing.T) {
	b := logBatch("none", 0, 1)
	appended := testTime.Add(time.Hour)
	b[batchAtAttributes+1] |= attrLogAppendTime
	binary.BigEndian.PutUint64(b[batchAtMaxTime:], uint64(appended.UnixMilli()))
	var d decoder
	got, err := d.decode(seal(b), 0)
	if err != nil || !got.Records[0].Time.Equal(appended) {
		t.Errorf("time = %v, %v; want the broker's, %v", got.Records, err, appended)
	}
}

// A corrupt batch does not hide the batches before it, and the error has the offset to
// continue at.
func TestCorruptBatch(t *testing.T) {
	flipped := logBatch("lz4", 2, 3)
	flipped[len(flipped)-1] ^= 1
	garbage := logBatch("none", 2, 3)
	garbage[batchAtAttributes+1] = codecZstd
	lies := logBatch("none", 2, 3)
	binary.BigEndian.PutUint32(lies[batchAtCount:], 1000)
	old := logBatch("none", 2, 1)
	old[batchAtMagic] = 1
	end := bytes.Clone(flipped) // claims to end before it begins
	binary.BigEndian.PutUint32(end[batchAtLastDelta:], 1<<31)
	far := bytes.Clone(flipped)
	binary.BigEndian.PutUint32(far[batchAtLastDelta:], 1<<30)
	short := logBatch("lz4", 2, 3)
	binary.BigEndian.PutUint32(short[batchAtLength:], 1)
	behind := logBatch("none", 5, 1)
	tests := map[string]struct {
		batch []byte
		next  int64
	}{
		"wrong checksum":                  {flipped, 3},
		"wrong checksum, another follows": {append(bytes.Clone(flipped), behind...), 5},
		"and that one is wrong, too":      {append(bytes.Clone(flipped), flipped...), 3},
		"and that one is cut off":         {append(bytes.Clone(flipped), behind[:65]...), 3},
		"its end is before it begins":     {append(end, behind...), 5},
		"its end is far away":             {append(far, behind...), 5},
		"it is too short":                 {append(short, behind...), 3},
		"not compressed so":               {seal(garbage), 5},
		"too few records":                 {seal(lies), 5},
		"older format":                    {old, 3},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var d decoder
			data := append(logBatch("lz4", 0, 2), tc.batch...)
			got, err := d.decode(data, 0)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(Batch{Records: offsets(0, 2), Next: 2}, got, ofLog); diff != "" {
				t.Errorf("before it (-want +got):\n%s", diff)
			}
			_, err = d.decode(data, got.Next)
			var corrupt *CorruptError
			if !errors.As(err, &corrupt) || corrupt.Offset != 2 || corrupt.Next != tc.next {
				t.Errorf("at it: %v, want a CorruptError from 2 to %d", err, tc.next)
			}
			if _, err := d.decode(tc.batch, 2); !errors.As(err, &corrupt) || corrupt.Next != tc.next {
				t.Errorf("at the beginning: %v, want a CorruptError to %d", err, tc.next)
			}
			if fault.ClassOf(classifyFetch(err)) != fault.Rejected {
				t.Error("its class is not rejected")
			}
		})
	}
}

// A broker returns the first batch of a fetch whole. Without a check, a batch with an
// excessive length would be awaited forever.
func TestCorruptLength(t *testing.T) {
	long := logBatch("lz4", 2, 3)
	binary.BigEndian.PutUint32(long[batchAtLength:], 1<<20)
	for name, data := range map[string][]byte{"too long": long, "a part of a header": long[:20]} {
		var d decoder
		var corrupt *CorruptError
		if _, err := d.decode(data, 2); !errors.As(err, &corrupt) || corrupt.Next != 3 {
			t.Errorf("%s: %v, want a CorruptError from 2 to 3", name, err)
		}
	}
}

// A few bytes must not exhaust memory.
func TestDecompressionIsBounded(t *testing.T) {
	zeros := make([]byte, 1<<20)
	for _, name := range []string{"gzip", "snappy", "lz4", "zstd"} {
		t.Run(name, func(t *testing.T) {
			codec, err := codecByName(name)
			if err != nil {
				t.Fatal(err)
			}
			packed := codec.append(nil, zeros)
			if _, err := appendDecompressed(nil, codec.id, packed, len(zeros)-1); !errors.Is(err, errTooBig) {
				t.Errorf("one byte over the bound: %v", err)
			}
			prefix := []byte("before")
			got, err := appendDecompressed(prefix, codec.id, packed, len(zeros))
			if err != nil || !bytes.Equal(got, append([]byte("before"), zeros...)) {
				t.Errorf("at the bound: %d bytes, %v", len(got), err)
			}
		})
	}
}

// unlz4 reads every lz4 frame that other clients write.
func TestLZ4Frames(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 300<<10)
	for i := range noise {
		noise[i] = byte(random.UintN(256))
	}
	text := bytes.Repeat([]byte("spans of the web store, "), 30_000)
	contents := map[string][]byte{"empty": nil, "text": text, "noise": noise, "both": append(append([]byte(nil), text...), noise...)}
	options := map[string][]lz4.Option{
		"plain":         nil,
		"small blocks":  {lz4.BlockSizeOption(lz4.Block64Kb)},
		"large blocks":  {lz4.BlockSizeOption(lz4.Block4Mb)},
		"all checksums": {lz4.BlockChecksumOption(true), lz4.ChecksumOption(true)},
		"slow":          {lz4.CompressionLevelOption(lz4.Level9)},
	}
	for name, opts := range options {
		for kind, content := range contents {
			t.Run(name+" "+kind, func(t *testing.T) {
				var frame bytes.Buffer
				w := lz4.NewWriter(&frame)
				if err := w.Apply(append(opts, lz4.SizeOption(uint64(len(content))))...); err != nil {
					t.Fatal(err)
				}
				if _, err := w.Write(content); err != nil {
					t.Fatal(err)
				}
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				got, err := unlz4(nil, frame.Bytes(), 10<<20)
				if err != nil || !bytes.Equal(got, content) {
					t.Errorf("got %d bytes, %v; want %d", len(got), err, len(content))
				}
			})
		}
	}
	// And the library reads this package's frames.
	for kind, content := range contents {
		var got bytes.Buffer
		if _, err := got.ReadFrom(lz4.NewReader(bytes.NewReader(appendLZ4(nil, content)))); err != nil || !bytes.Equal(got.Bytes(), content) {
			t.Errorf("ours, %s: got %d bytes, %v; want %d", kind, got.Len(), err, len(content))
		}
	}
}

// Java's snappy consists of blocks with their own header.
func TestXerialSnappy(t *testing.T) {
	packed := append(append([]byte(nil), xerialMagic...), 0, 0, 0, 1, 0, 0, 0, 1)
	for _, part := range []string{"first, ", "second"} {
		block := appendSnappy(nil, []byte(part))
		packed = binary.BigEndian.AppendUint32(packed, uint32(len(block)))
		packed = append(packed, block...)
	}
	got, err := unsnappy(nil, packed, 100)
	if string(got) != "first, second" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := unsnappy(nil, packed[:len(packed)-1], 100); err == nil {
		t.Error("a cut block was accepted")
	}
}

// FuzzDecode checks decode's contract for arbitrary bytes: no panic, every error is a
// *CorruptError that leads onward, and records are in order and not before the requested
// offset.
func FuzzDecode(f *testing.F) {
	for _, compression := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		f.Add(append(logBatch(compression, 0, 3), logBatch(compression, 3, 1)...), int64(1), true)
	}
	f.Fuzz(func(t *testing.T, data []byte, from int64, repair bool) {
		if from < 0 || from > 1<<40 {
			return
		}
		if length := len(data); repair && length > batchHeaderSize { // lets the fuzzer get past the checksum
			data = bytes.Clone(data)
			binary.BigEndian.PutUint32(data[batchAtLength:], uint32(length-batchAtEpoch))
			seal(data)
		}
		var d decoder
		b, err := d.decode(data, from)
		if err != nil {
			var corrupt *CorruptError
			if !errors.As(err, &corrupt) || corrupt.Next <= from {
				t.Fatalf("from %d: %v, next %d", from, err, corrupt.Next)
			}
			return
		}
		if b.Next < from {
			t.Fatalf("next is %d, before %d", b.Next, from)
		}
		last := from - 1
		for i := range b.Records {
			if o := b.Records[i].Offset; o <= last || o >= b.Next {
				t.Fatalf("offset %d is not between %d and %d", o, last, b.Next)
			}
			last = b.Records[i].Offset
			b.Headers(i)
		}
	})
}
