package kafka

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Codec numbers in a batch's attributes.
const (
	codecNone = iota
	codecGzip
	codecSnappy
	codecLZ4
	codecZstd
)

// codec is one compression of the records of a batch.
type codec struct {
	id     int
	append func(dst, src []byte) []byte // nil for codecNone
}

func codecByName(name string) (codec, error) {
	switch name {
	case "none":
		return codec{id: codecNone}, nil
	case "gzip":
		return codec{codecGzip, appendGzip}, nil
	case "snappy":
		return codec{codecSnappy, appendSnappy}, nil
	case "lz4":
		return codec{codecLZ4, appendLZ4}, nil
	case "zstd":
		return codec{codecZstd, appendZstd}, nil
	default:
		return codec{}, fmt.Errorf("%q is not none, gzip, snappy, lz4 or zstd", name)
	}
}

// appendWriter lets a compressor append to a slice.
type appendWriter struct{ b []byte }

func (w *appendWriter) Write(p []byte) (int, error) {
	w.b = append(w.b, p...)
	return len(p), nil
}

var gzipWriters = sync.Pool{New: func() any { return gzip.NewWriter(nil) }}

func appendGzip(dst, src []byte) []byte {
	w := gzipWriters.Get().(*gzip.Writer)
	defer gzipWriters.Put(w)
	out := appendWriter{b: dst}
	w.Reset(&out)
	_, _ = w.Write(src) // errors come from out only, which returns none
	_ = w.Close()
	w.Reset(nil)
	return out.b
}

// appendSnappy writes one plain snappy block, as franz-go and librdkafka do. Readers
// accept it as well as the framing of Java clients.
func appendSnappy(dst, src []byte) []byte {
	start := len(dst)
	dst = grow(dst, s2.MaxEncodedLen(len(src)))
	return dst[:start+len(s2.EncodeSnappy(dst[start:cap(dst)], src))]
}

// One encoder serves all goroutines. The library's next level compresses spans 3%
// better for half as much CPU again (BenchmarkEncode).
var zstdEncoder = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false), zstd.WithWindowSize(1<<20))
	if err != nil {
		panic(err) // the options are constants
	}
	return e
})

func appendZstd(dst, src []byte) []byte { return zstdEncoder().EncodeAll(src, dst) }

// Kafka uses the LZ4 frame format with independent blocks. This package writes neither
// sizes nor checksums, because the batch has both.
const (
	lz4Magic     = 0x184D2204
	lz4Version   = 1 << 6
	lz4Unlinked  = 1 << 5
	lz4BlockSum  = 1 << 4
	lz4HasSize   = 1 << 3
	lz4FrameSum  = 1 << 2
	lz4HasDictID = 1 << 0

	lz4BlockSize  = 1 << 20 // most batches are one block; 64 KiB would compress them a third less
	lz4BlockCode  = 6 << 4  // 1 MiB
	lz4HeaderHash = 0x51    // checksum of the two bytes before it, which never change
	lz4Plain      = 1 << 31 // flag in a block's length: not compressed
)

var lz4Compressors = sync.Pool{New: func() any { return new(lz4.Compressor) }}

func appendLZ4(dst, src []byte) []byte {
	c := lz4Compressors.Get().(*lz4.Compressor)
	defer lz4Compressors.Put(c)
	dst = binary.LittleEndian.AppendUint32(dst, lz4Magic)
	dst = append(dst, lz4Version|lz4Unlinked, lz4BlockCode, lz4HeaderHash)
	for len(src) > 0 {
		block := src[:min(len(src), lz4BlockSize)]
		src = src[len(block):]
		dst = grow(dst, 4+lz4.CompressBlockBound(len(block)))
		at := len(dst)
		n, err := c.CompressBlock(block, dst[at+4:cap(dst)])
		if err != nil || n == 0 || n >= len(block) {
			dst = binary.LittleEndian.AppendUint32(dst, uint32(len(block))|lz4Plain)
			dst = append(dst, block...)
			continue
		}
		dst = binary.LittleEndian.AppendUint32(dst, uint32(n))
		dst = dst[:at+4+n]
	}
	return binary.LittleEndian.AppendUint32(dst, 0)
}

// grow returns dst with room for n more bytes.
func grow(dst []byte, n int) []byte {
	if cap(dst)-len(dst) >= n {
		return dst
	}
	bigger := make([]byte, len(dst), max(len(dst)+n, 2*cap(dst)))
	copy(bigger, dst)
	return bigger
}

var errTooBig = errors.New("it is too large after decompression")

// appendDecompressed appends the decompressed src to dst, at most limit bytes.
func appendDecompressed(dst []byte, codec int, src []byte, limit int) ([]byte, error) {
	switch codec {
	case codecGzip:
		return gunzip(dst, src, limit)
	case codecSnappy:
		return unsnappy(dst, src, limit)
	case codecLZ4:
		return unlz4(dst, src, len(dst)+limit)
	case codecZstd:
		return unzstd(dst, src, limit)
	default:
		return nil, fmt.Errorf("compression %d is unknown", codec)
	}
}

var gzipReaders = sync.Pool{New: func() any { return new(gzip.Reader) }}

func gunzip(dst, src []byte, limit int) ([]byte, error) {
	r := gzipReaders.Get().(*gzip.Reader)
	defer gzipReaders.Put(r)
	if err := r.Reset(bytes.NewReader(src)); err != nil {
		return nil, err
	}
	end := len(dst) + limit
	for {
		dst = grow(dst, 1)
		n, err := r.Read(dst[len(dst):cap(dst)])
		dst = dst[:len(dst)+n]
		switch {
		case len(dst) > end:
			return nil, errTooBig
		case errors.Is(err, io.EOF):
			return dst, nil
		case err != nil:
			return nil, err
		}
	}
}

// xerialMagic begins the snappy framing of Java clients. Two version numbers follow, then
// blocks with their lengths.
var xerialMagic = []byte{0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0}

const xerialHeaderSize = 16

func unsnappy(dst, src []byte, limit int) ([]byte, error) {
	if !bytes.HasPrefix(src, xerialMagic) || len(src) < xerialHeaderSize {
		return unsnappyBlock(dst, src, limit)
	}
	end := len(dst) + limit
	for src = src[xerialHeaderSize:]; len(src) > 0; {
		if len(src) < 4 {
			return nil, io.ErrUnexpectedEOF
		}
		n := int(binary.BigEndian.Uint32(src))
		src = src[4:]
		if n > len(src) {
			return nil, io.ErrUnexpectedEOF
		}
		var err error
		if dst, err = unsnappyBlock(dst, src[:n], end-len(dst)); err != nil {
			return nil, err
		}
		src = src[n:]
	}
	return dst, nil
}

// snappyRatio exceeds snappy's best compression, 64 bytes into 3. A block that claims
// more is corrupt or hostile.
const snappyRatio = 64

func unsnappyBlock(dst, src []byte, limit int) ([]byte, error) {
	n, err := s2.DecodedLen(src)
	if err != nil {
		return nil, err
	}
	if n > limit || n > snappyRatio*len(src) {
		return nil, errTooBig
	}
	dst = grow(dst, n)
	if _, err := s2.Decode(dst[len(dst):len(dst)+n], src); err != nil {
		return nil, err
	}
	return dst[:len(dst)+n], nil
}

// One decoder serves all goroutines and runs in the caller's.
var zstdDecoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxDecompressed), zstd.WithDecoderConcurrency(0))
	if err != nil {
		panic(err) // the options are constants
	}
	return d
})

func unzstd(dst, src []byte, limit int) ([]byte, error) {
	start := len(dst)
	// The library makes room for exactly this frame. With many batches in one buffer it
	// would move all of them for each batch.
	var h zstd.Header
	if err := h.Decode(src); err == nil && h.HasFCS {
		dst = grow(dst, int(min(h.FrameContentSize, uint64(limit))))
	} else {
		dst = grow(dst, 4*len(src))
	}
	dst, err := zstdDecoder().DecodeAll(src, dst)
	if errors.Is(err, zstd.ErrDecoderSizeExceeded) || (err == nil && len(dst)-start > limit) {
		return nil, errTooBig
	}
	return dst, err
}
