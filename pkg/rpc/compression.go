package rpc

import (
	"bufio"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/gzip" // first, so that the faster one registered below replaces it
)

// gRPC looks up compressors by name in a global table that may be written only during
// initialization.
func init() {
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	for _, c := range []*compressor{
		{name: "gzip", newReader: newGzipReader, newWriter: newGzipWriter},
		{name: "zstd", newReader: newZstdReader, newWriter: newZstdWriter},
		{name: "snappy", newReader: newSnappyReader, newWriter: newSnappyWriter},
	} {
		c.slots = slots
		encoding.RegisterCompressor(c)
	}
}

// maxZstdWindow is the window that the zstd specification asks every decoder to support.
// A frame may declare a window far larger than its data; such frames are refused.
const maxZstdWindow = 8 << 20

// resettable is a reusable reader of any format.
type resettable interface {
	io.Reader
	Reset(r io.Reader) error
}

type resettableWriter interface {
	io.WriteCloser
	Reset(w io.Writer)
}

// compressor implements encoding.Compressor with pooled readers and writers.
//
// gRPC decompresses a message only after all of its compressed bytes have arrived, so
// decompression is pure computation: running more than one per processor would only use
// more memory. slots bounds it for all formats together.
type compressor struct {
	name      string
	newReader func() (resettable, error)
	newWriter func() (resettableWriter, error)
	slots     chan struct{}
	readers   sync.Pool
	writers   sync.Pool
}

func (c *compressor) Name() string { return c.name }

func (c *compressor) Decompress(r io.Reader) (io.Reader, error) {
	c.slots <- struct{}{}
	d, err := c.open(r)
	if err != nil {
		<-c.slots
		return nil, fmt.Errorf("read %s header: %w", c.name, err)
	}
	return d, nil
}

func (c *compressor) open(r io.Reader) (*decompression, error) {
	d, ok := c.readers.Get().(*decompression)
	if !ok {
		reader, err := c.newReader()
		if err != nil {
			return nil, err
		}
		d = &decompression{resettable: reader, owner: c}
	}
	if err := d.Reset(r); err != nil {
		c.readers.Put(d)
		return nil, err
	}
	return d, nil
}

func (c *compressor) Compress(w io.Writer) (io.WriteCloser, error) {
	z, ok := c.writers.Get().(*compression)
	if !ok {
		writer, err := c.newWriter()
		if err != nil {
			return nil, err
		}
		z = &compression{resettableWriter: writer, owner: c}
	}
	z.Reset(w)
	return z, nil
}

// decompression is the decompression of one message. gRPC closes it exactly once.
type decompression struct {
	resettable
	owner *compressor
}

func (d *decompression) Close() error {
	d.owner.readers.Put(d)
	<-d.owner.slots
	return nil
}

type compression struct {
	resettableWriter
	owner *compressor
}

func (z *compression) Close() error {
	err := z.resettableWriter.Close()
	z.owner.writers.Put(z)
	return err
}

// gzipReader puts a buffer in front of the decoder, which has a fast path for this type;
// gRPC's reader would cost an interface call per byte.
type gzipReader struct {
	gzip.Reader
	source *bufio.Reader
}

func (r *gzipReader) Reset(src io.Reader) error {
	r.source.Reset(src)
	return r.Reader.Reset(r.source)
}

func newGzipReader() (resettable, error) {
	return &gzipReader{source: bufio.NewReaderSize(nil, 32<<10)}, nil
}

func newGzipWriter() (resettableWriter, error) { return gzip.NewWriterLevel(nil, gzip.BestSpeed) }

// With concurrency 1 the decoder starts no goroutines that would have to be stopped.
func newZstdReader() (resettable, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
}

func newZstdWriter() (resettableWriter, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(512<<10))
}

// snappyReader adapts the Reset of snappy.Reader.
type snappyReader struct{ *snappy.Reader }

func (r snappyReader) Reset(src io.Reader) error {
	r.Reader.Reset(src)
	return nil
}

func newSnappyReader() (resettable, error)       { return snappyReader{snappy.NewReader(nil)}, nil }
func newSnappyWriter() (resettableWriter, error) { return snappy.NewBufferedWriter(nil), nil }
