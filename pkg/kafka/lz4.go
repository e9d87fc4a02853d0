package kafka

import (
	"encoding/binary"
	"errors"
	"io"

	"github.com/pierrec/lz4/v4"
)

var errLZ4 = errors.New("not an lz4 frame")

// unlz4 appends the content of the frames in src to dst, which must not grow beyond end
// bytes. It ignores checksums, because the batch has its own.
//
// The library's reader goes through buffers of its own at about half the speed.
func unlz4(dst, src []byte, end int) ([]byte, error) {
	for len(src) > 0 {
		var err error
		if dst, src, err = unlz4Frame(dst, src, end); err != nil {
			return nil, err
		}
	}
	return dst, nil
}

// unlz4Frame appends the content of the first frame and returns the remaining bytes.
func unlz4Frame(dst, src []byte, end int) (out, rest []byte, err error) {
	if len(src) < 7 || binary.LittleEndian.Uint32(src) != lz4Magic || src[4]>>6 != lz4Version>>6 {
		return nil, nil, errLZ4
	}
	flags, code := src[4], src[5]>>4&7
	if code < 4 {
		return nil, nil, errLZ4
	}
	blockSize := 1 << (8 + 2*uint(code)) // 64 KiB, 256 KiB, 1 MiB, 4 MiB
	header := 7
	if flags&lz4HasSize != 0 {
		header += 8
	}
	if flags&lz4HasDictID != 0 {
		header += 4
	}
	if len(src) < header {
		return nil, nil, io.ErrUnexpectedEOF
	}
	src = src[header:]
	frame := len(dst) // linked blocks may refer back to here
	for {
		if len(src) < 4 {
			return nil, nil, io.ErrUnexpectedEOF
		}
		length := binary.LittleEndian.Uint32(src)
		src = src[4:]
		if length == 0 {
			break
		}
		n := int(length &^ lz4Plain)
		if n > len(src) || n > blockSize+blockSize/16 {
			return nil, nil, io.ErrUnexpectedEOF
		}
		history := len(dst)
		if flags&lz4Unlinked == 0 {
			history = frame
		}
		if length&lz4Plain != 0 {
			dst = append(grow(dst, n), src[:n]...)
		} else if dst, err = unlz4Block(dst, src[:n], history, blockSize); err != nil {
			return nil, nil, err
		}
		if len(dst) > end {
			return nil, nil, errTooBig
		}
		src = src[n:]
		if flags&lz4BlockSum != 0 {
			if len(src) < 4 {
				return nil, nil, io.ErrUnexpectedEOF
			}
			src = src[4:]
		}
	}
	if flags&lz4FrameSum != 0 {
		if len(src) < 4 {
			return nil, nil, io.ErrUnexpectedEOF
		}
		src = src[4:]
	}
	return dst, src, nil
}

// unlz4Block appends one block, which may refer back to dst[history:]. The format does
// not store the decompressed size, so room grows as needed.
func unlz4Block(dst, block []byte, history, blockSize int) ([]byte, error) {
	for room := min(blockSize, 8*len(block)); ; room = min(blockSize, 2*room) {
		dst = grow(dst, room)
		free := dst[len(dst):min(cap(dst), len(dst)+blockSize)]
		n, err := lz4.UncompressBlockWithDict(block, free, dst[history:])
		if err == nil {
			return dst[:len(dst)+n], nil
		}
		if len(free) >= blockSize {
			return nil, err
		}
	}
}
