package agent

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// codec compresses requests for the spool by a factor of five to ten, so that
// the spool covers an outage that much longer. It is safe for concurrent use.
type codec struct {
	encoder *zstd.Encoder
	decoder *zstd.Decoder
}

// maxUnpacked exceeds every configurable limit of a request.
const maxUnpacked = 1 << 30

func newCodec() (*codec, error) {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, fmt.Errorf("create zstd encoder: %w", err)
	}
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(maxUnpacked), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, fmt.Errorf("create zstd decoder: %w", err)
	}
	return &codec{encoder, decoder}, nil
}

func (c *codec) pack(body []byte) []byte { return c.encoder.EncodeAll(body, nil) }

func (c *codec) unpack(packed []byte) ([]byte, error) { return c.decoder.DecodeAll(packed, nil) }

func (c *codec) close() {
	c.decoder.Close()
	_ = c.encoder.Close() // writes nothing: EncodeAll buffers nothing
}
