package otlphttp

import (
	"bytes"
	"compress/zlib"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxZstdWindow is the window that the zstd specification asks every decoder to support.
// A frame may declare a window far larger than its data; such frames are refused.
const maxZstdWindow = 8 << 20

// decoder decodes one encoding and is reusable.
type decoder interface {
	io.Reader
	Reset(r *bytes.Reader) error
}

// formats are the constructors of the supported encodings' decoders.
var formats = map[string]func() (decoder, error){
	"gzip":    func() (decoder, error) { return new(gzipDecoder), nil },
	"x-gzip":  func() (decoder, error) { return new(gzipDecoder), nil },
	"deflate": func() (decoder, error) { return new(deflateDecoder), nil },
	"zstd":    newZstdDecoder,
}

func known(encoding string) bool { return formats[encoding] != nil }

// decoders pools decoders and bounds how many run at once. Bodies are read before they
// are decompressed, so decompression is pure computation: running more than one per
// processor would only use more memory.
type decoders struct {
	slots chan struct{}
	pools map[string]*sync.Pool
}

func newDecoders(atOnce int) *decoders {
	d := &decoders{slots: make(chan struct{}, atOnce), pools: map[string]*sync.Pool{}}
	for name := range formats {
		d.pools[name] = new(sync.Pool)
	}
	return d
}

// take returns a decoder that reads body. The caller returns it with put.
func (d *decoders) take(encoding string, body []byte) (decoder, error) {
	dec, ok := d.pools[encoding].Get().(decoder)
	if !ok {
		var err error
		if dec, err = formats[encoding](); err != nil {
			return nil, err
		}
	}
	if err := dec.Reset(bytes.NewReader(body)); err != nil {
		d.put(encoding, dec)
		return nil, err
	}
	return dec, nil
}

func (d *decoders) put(encoding string, dec decoder) { d.pools[encoding].Put(dec) }

type gzipDecoder struct{ gzip.Reader }

func (d *gzipDecoder) Reset(r *bytes.Reader) error { return d.Reader.Reset(r) }

// deflateDecoder reads what HTTP calls deflate: a zlib stream, or the bare deflate stream
// that many clients send instead.
type deflateDecoder struct {
	io.Reader

	zlib, bare io.ReadCloser // nil until needed
}

func (d *deflateDecoder) Reset(r *bytes.Reader) (err error) {
	var start [2]byte
	_, _ = r.ReadAt(start[:], 0) // a body too short for a header is too short for a stream; the reader reports it
	switch {
	case !zlibHeader(start) && d.bare == nil:
		d.bare = flate.NewReader(r)
		d.Reader = d.bare
	case !zlibHeader(start):
		d.Reader = d.bare
		err = d.bare.(flate.Resetter).Reset(r, nil)
	case d.zlib == nil:
		d.zlib, err = zlib.NewReader(r)
		d.Reader = d.zlib
	default:
		d.Reader = d.zlib
		err = d.zlib.(zlib.Resetter).Reset(r, nil)
	}
	return err
}

// zlibHeader reports whether start is a zlib header (RFC 1950): method 8 and a checksum
// over both bytes. A bare deflate stream never begins like this: it would be a stored
// block with reserved bits.
func zlibHeader(start [2]byte) bool {
	return start[0]&0x0f == 8 && (int(start[0])<<8|int(start[1]))%31 == 0
}

type zstdDecoder struct{ *zstd.Decoder }

// With concurrency 1 the decoder starts no goroutines that would have to be stopped.
func newZstdDecoder() (decoder, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
	return zstdDecoder{d}, err
}

func (d zstdDecoder) Reset(r *bytes.Reader) error { return d.Decoder.Reset(r) }
