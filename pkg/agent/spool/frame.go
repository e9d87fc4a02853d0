package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"time"
)

// An entry in a segment is a header of headerSize bytes, big-endian, and the
// body:
//
//	0  magic      4 bytes
//	4  flags      uint32
//	8  index      uint32  of the entry in its segment, from 0
//	12 length     uint32  of the body
//	16 received   int64   nanoseconds since the Unix epoch
//	24 body CRC   uint32  CRC-32C
//	28 header CRC uint32  CRC-32C of the segment's number (8 bytes) and of the bytes before
//
// A segment that was closed in order ends with a footer: a header with
// flagFooter whose index is the number of entries before it, and whose time is
// that of the first entry. The format is stored data; a test pins it.
const (
	headerSize = 32
	magic      = "MFsp"

	flagResend = 1 << 0
	flagFooter = 1 << 1
	flagsKnown = flagResend | flagFooter

	maxLength = 1 << 30 // a header with a greater length is damaged
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func crc(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

type header struct {
	flags    uint32
	index    uint32
	length   uint32
	received int64
	bodyCRC  uint32
}

func (h header) receivedAt() time.Time { return time.Unix(0, h.received) }

// size returns the bytes that the entry occupies in the file.
func (h header) size() int64 { return headerSize + int64(h.length) }

func (h header) encode(segment uint64) [headerSize]byte {
	var b [headerSize]byte
	copy(b[:], magic)
	binary.BigEndian.PutUint32(b[4:], h.flags)
	binary.BigEndian.PutUint32(b[8:], h.index)
	binary.BigEndian.PutUint32(b[12:], h.length)
	binary.BigEndian.PutUint64(b[16:], uint64(h.received))
	binary.BigEndian.PutUint32(b[24:], h.bodyCRC)
	binary.BigEndian.PutUint32(b[28:], headerCRC(b[:28], segment))
	return b
}

// decode reports false unless b is an intact header of this segment.
func decode(b []byte, segment uint64) (header, bool) {
	if string(b[:4]) != magic || binary.BigEndian.Uint32(b[28:]) != headerCRC(b[:28], segment) {
		return header{}, false
	}
	h := header{
		flags:    binary.BigEndian.Uint32(b[4:]),
		index:    binary.BigEndian.Uint32(b[8:]),
		length:   binary.BigEndian.Uint32(b[12:]),
		received: int64(binary.BigEndian.Uint64(b[16:])),
		bodyCRC:  binary.BigEndian.Uint32(b[24:]),
	}
	return h, h.length <= maxLength && h.flags&^flagsKnown == 0
}

func headerCRC(b []byte, segment uint64) uint32 {
	var number [8]byte
	binary.BigEndian.PutUint64(number[:], segment)
	return crc32.Update(crc32.Checksum(number[:], castagnoli), castagnoli, b)
}

// scanner reads the entries of a segment in order and skips damage.
type scanner struct {
	file    io.ReaderAt
	segment uint64
	off     int64 // offset of the next header
	least   uint32
	damaged int64 // bytes skipped
	buf     []byte
}

// next returns the next intact entry that ends at or before limit, or io.EOF.
// limit must be the end of an entry or of the file. The body is a new slice
// that the caller owns.
func (s *scanner) next(limit int64) (header, []byte, error) {
	for {
		h, err := s.header(limit)
		if err != nil {
			return header{}, nil, err
		}
		if h.flags&flagFooter != 0 {
			s.off += headerSize
			continue
		}
		if s.off+h.size() > limit {
			return header{}, nil, s.end(limit) // a header whose body was never written completely
		}
		body := make([]byte, h.length)
		_, err = s.file.ReadAt(body, s.off+headerSize)
		if err != nil && !errors.Is(err, io.EOF) || crc(body) != h.bodyCRC {
			// The header is intact, so its length can be trusted.
			s.damaged += h.size()
			s.off += h.size()
			continue
		}
		s.off += h.size()
		s.least = h.index + 1
		return h, body, nil
	}
}

// header finds the next header at or after off and moves off to it.
func (s *scanner) header(limit int64) (header, error) {
	if limit-s.off < headerSize {
		return header{}, s.end(limit)
	}
	var b [headerSize]byte
	if _, err := s.file.ReadAt(b[:], s.off); err == nil {
		if h, ok := s.decode(b[:], s.off); ok {
			return h, nil
		}
	}
	return s.search(limit)
}

func (s *scanner) end(limit int64) error {
	if limit > s.off {
		s.damaged += limit - s.off
		s.off = limit
	}
	return io.EOF
}

// decode also rejects an index that cannot occur at off: one already read, or
// one too high for the bytes before it. A body may contain what looks like a
// header.
func (s *scanner) decode(b []byte, off int64) (header, bool) {
	h, ok := decode(b, s.segment)
	return h, ok && h.index >= s.least && int64(h.index) <= off/headerSize
}

// searchStep is the read size while searching for a header. Where the disk
// cannot read, that much is skipped.
const searchStep = 4 << 10

// search looks for the next header in the bytes after off.
func (s *scanner) search(limit int64) (header, error) {
	if s.buf == nil {
		s.buf = make([]byte, searchStep+headerSize-1) // the overlap finds headers that cross a step
	}
	for at := s.off + 1; at+headerSize <= limit; at += searchStep {
		n, err := s.file.ReadAt(s.buf[:min(int64(len(s.buf)), limit-at)], at)
		if err != nil && !errors.Is(err, io.EOF) {
			continue
		}
		for i := 0; i+headerSize <= n; i++ {
			j := bytes.Index(s.buf[i:n], []byte(magic))
			if j < 0 || i+j+headerSize > n {
				break
			}
			i += j
			if h, ok := s.decode(s.buf[i:i+headerSize], at+int64(i)); ok {
				s.damaged += at + int64(i) - s.off
				s.off = at + int64(i)
				return h, nil
			}
		}
	}
	return header{}, s.end(limit)
}
