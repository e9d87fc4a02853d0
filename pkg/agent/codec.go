package agent

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// codec makes requests smaller for the spool, five to ten times: that is how many
// times longer the servers may be away. It may be used by several goroutines.
type codec struct {
	encoder *zstd.Encoder
	decoder *zstd.Decoder
}

// maxUnpacked is above every limit on a request that can be configured.
const maxUnpacked = 1 << 30

func newCodec() (*codec, error) {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, fmt.Errorf("make zstd encoder: %w", err)
	}
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(maxUnpacked), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, fmt.Errorf("make zstd decoder: %w", err)
	}
	return &codec{encoder, decoder}, nil
}

func (c *codec) pack(body []byte) []byte { return c.encoder.EncodeAll(body, nil) }

func (c *codec) unpack(packed []byte) ([]byte, error) { return c.decoder.DecodeAll(packed, nil) }

func (c *codec) close() {
	c.decoder.Close()
	_ = c.encoder.Close() // writes nothing: EncodeAll leaves nothing behind
}
