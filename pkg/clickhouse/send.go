package clickhouse

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/compress"
	"github.com/ClickHouse/ch-go/proto"
)

// sender implements the INSERT part of the native protocol over a connection that
// ch.Client has logged in, while that client is not in use.
//
// ch.Client copies a whole block to encode it and again to compress it, and keeps both
// buffers: twice the largest block for each connection. The protocol allows better,
// because a compressed block is a sequence of frames. The sender writes the columns one
// after another, straight from the caller's memory, into frames of frameSize. A
// connection keeps two frames, whatever the size of a block.
type sender struct {
	conn    net.Conn
	reader  *proto.Reader
	writer  *proto.Writer // packets, and blocks when they are not compressed
	block   *proto.Writer // blocks
	frames  *frames       // nil without compression
	version int
}

// insertion is one block to insert.
type insertion struct {
	guard    Guard
	id       string // of the query; empty lets ClickHouse choose
	sql      string
	settings []proto.Setting
	input    proto.Input
	rows     int
}

func newSender(conn net.Conn, server proto.ServerHello, compression string) *sender {
	s := &sender{
		conn:    conn,
		reader:  proto.NewReader(conn),
		writer:  proto.NewWriter(conn, new(proto.Buffer)),
		version: min(proto.Version, server.Revision),
	}
	s.block = s.writer
	if method, ok := methods[compression]; ok {
		s.frames = newFrames(conn, method)
		s.block = proto.NewWriter(s.frames, new(proto.Buffer))
	}
	return s
}

// methods maps the names of compressions to methods.
var methods = map[string]compress.Method{
	compressionLZ4:  compress.LZ4,
	compressionZSTD: compress.ZSTD,
}

// insert sends the statement, waits for the table's columns, sends the block and waits
// for the response. From the arrival of the columns on, Settle finds the query. So a
// Settle after the guard's time sees every insert that passed the guard.
func (s *sender) insert(in insertion) error {
	if err := s.sendQuery(in); err != nil {
		return s.explain(fmt.Errorf("send query: %w", err))
	}
	var table proto.ColInfoInput
	if err := s.receive(proto.ServerCodeData, &table); err != nil {
		return err
	}
	if err := infer(in.input, table); err != nil {
		return err
	}
	if in.guard.expired() {
		return ErrExpired
	}
	err := s.sendBlock(in.input, in.rows)
	if err == nil {
		err = s.sendBlock(nil, 0)
	}
	if err != nil {
		return s.explain(fmt.Errorf("send block: %w", err))
	}
	return s.receive(proto.ServerCodeEndOfStream, nil)
}

func (s *sender) sendQuery(in insertion) error {
	compression := proto.CompressionDisabled
	if s.frames != nil {
		compression = proto.CompressionEnabled
	}
	s.writer.ChainBuffer(func(b *proto.Buffer) {
		proto.Query{
			ID:          in.id,
			Body:        in.sql,
			Stage:       proto.StageComplete,
			Compression: compression,
			Settings:    in.settings,
			Info: proto.ClientInfo{
				ProtocolVersion: s.version,
				Interface:       proto.InterfaceTCP,
				Query:           proto.ClientQueryInitial,
				InitialAddress:  s.conn.LocalAddr().String(),
				ClientName:      clientName,
			},
		}.EncodeAware(b, s.version)
	})
	if _, err := s.writer.Flush(); err != nil {
		return err
	}
	return s.sendBlock(nil, 0) // no external tables
}

// sendBlock sends one block. A block without columns ends a series.
func (s *sender) sendBlock(input proto.Input, rows int) error {
	s.writer.ChainBuffer(func(b *proto.Buffer) {
		proto.ClientCodeData.Encode(b)
		proto.ClientData{}.EncodeAware(b, s.version)
	})
	if _, err := s.writer.Flush(); err != nil {
		return err
	}
	s.block.ChainBuffer(func(b *proto.Buffer) {
		head := proto.Block{Columns: len(input), Rows: rows}
		if len(input) > 0 {
			head.Info.BucketNum = -1 // not of a two-level aggregation
		}
		head.EncodeAware(b, s.version)
	})
	for _, c := range input {
		if err := s.sendColumn(c); err != nil {
			return err
		}
	}
	if _, err := s.block.Flush(); err != nil {
		return err
	}
	if s.frames != nil {
		return s.frames.flush()
	}
	return nil
}

func (s *sender) sendColumn(c proto.InputColumn) error {
	s.block.ChainBuffer(func(b *proto.Buffer) { c.EncodeStart(b, s.version) })
	if p, ok := c.Data.(proto.Preparable); ok {
		if err := p.Prepare(); err != nil {
			return fmt.Errorf("prepare column %s: %w", c.Name, err)
		}
	}
	if e, ok := c.Data.(proto.StateEncoder); ok {
		s.block.ChainBuffer(e.EncodeState)
	}
	c.Data.WriteColumn(s.block)
	_, err := s.block.Flush()
	return err
}

// infer passes the table's column types to the columns that need them, for example the
// names of an enumeration.
func infer(input proto.Input, table proto.ColInfoInput) error {
	for _, c := range input {
		column, ok := c.Data.(proto.Inferable)
		if !ok {
			continue
		}
		for _, t := range table {
			if t.Name != c.Name {
				continue
			}
			if err := column.Infer(t.Type); err != nil {
				return fmt.Errorf("send column %s as %s: %w", c.Name, t.Type, err)
			}
		}
	}
	return nil
}

// receive reads packets until one has the code wanted, and decodes it into result. It
// skips progress packets.
func (s *sender) receive(wanted proto.ServerCode, result proto.Result) error {
	for {
		n, err := s.reader.UVarInt()
		if err != nil {
			return fmt.Errorf("read response: %w", err)
		}
		code := proto.ServerCode(n)
		if code == proto.ServerCodeEndOfStream && code != wanted {
			return errors.New("read response: it ended early")
		}
		if err := s.packet(code, result); err != nil {
			return err
		}
		if code == wanted {
			return nil
		}
	}
}

func (s *sender) packet(code proto.ServerCode, result proto.Result) error {
	var decoder proto.AwareDecoder
	switch code {
	case proto.ServerCodeEndOfStream:
		return nil
	case proto.ServerCodeException:
		return s.exception()
	case proto.ServerCodeData:
		return s.data(result, s.frames != nil)
	case proto.ServerProfileEvents:
		var events proto.ProfileEvents
		return s.data(events.Result(), false)
	case proto.ServerCodeLog:
		var lines proto.Logs
		return s.data(lines.Result(), false)
	case proto.ServerCodeProgress:
		decoder = new(proto.Progress)
	case proto.ServerCodeProfile:
		decoder = new(proto.Profile)
	case proto.ServerCodeTableColumns:
		decoder = new(proto.TableColumns)
	default:
		return fmt.Errorf("read response: unexpected packet %s", code)
	}
	if err := decoder.DecodeAware(s.reader, s.version); err != nil {
		return fmt.Errorf("read response: %w", err)
	}
	return nil
}

func (s *sender) exception() error {
	var e proto.Exception
	if err := e.DecodeAware(s.reader, s.version); err != nil {
		return fmt.Errorf("read error: %w", err)
	}
	return &ch.Exception{Code: e.Code, Name: e.Name, Message: e.Message, Stack: e.Stack}
}

func (s *sender) data(result proto.Result, compressed bool) error {
	if proto.FeatureTempTables.In(s.version) {
		if _, err := s.reader.Str(); err != nil {
			return fmt.Errorf("read response: %w", err)
		}
	}
	if compressed {
		s.reader.EnableCompression()
		defer s.reader.DisableCompression()
	}
	var block proto.Block
	if err := block.DecodeBlock(s.reader, s.version, result); err != nil {
		return fmt.Errorf("read response: %w", err)
	}
	return nil
}

// explainTimeout bounds the wait of explain: an error that the server sent before it
// closed the connection has arrived by then.
const explainTimeout = time.Second

// explain replaces a send error by ClickHouse's own error, which may have arrived before
// it stopped reading. Otherwise it returns err. A timeout comes from conn.run, which must
// not be delayed.
func (s *sender) explain(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) || s.conn.SetReadDeadline(time.Now().Add(explainTimeout)) != nil {
		return err
	}
	answer := s.receive(proto.ServerCodeEndOfStream, nil)
	if _, _, ok := exception(answer); ok {
		return answer
	}
	return err
}

// frameSize is the size of a compressed frame, ClickHouse's own default for
// max_compress_block_size. Less compresses worse, more takes more memory.
const frameSize = 1 << 20

// frames compresses its input in pieces of frameSize.
type frames struct {
	to         io.Writer
	compressor *compress.Writer
	open       []byte // less than frameSize
}

func newFrames(to io.Writer, method compress.Method) *frames {
	return &frames{to: to, compressor: compress.NewWriter(compress.LevelZero, method), open: make([]byte, 0, frameSize)}
}

// Write compresses full pieces of p in place, unless they must be joined with earlier
// bytes.
func (f *frames) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if len(f.open) == 0 && len(p) >= frameSize {
			if err := f.send(p[:frameSize]); err != nil {
				return 0, err
			}
			p = p[frameSize:]
			continue
		}
		taken := min(len(p), frameSize-len(f.open))
		f.open = append(f.open, p[:taken]...)
		p = p[taken:]
		if len(f.open) == frameSize {
			if err := f.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

// flush sends the remaining bytes as a shorter frame.
func (f *frames) flush() error {
	if len(f.open) == 0 {
		return nil
	}
	err := f.send(f.open)
	f.open = f.open[:0]
	return err
}

func (f *frames) send(data []byte) error {
	if err := f.compressor.Compress(data); err != nil {
		return fmt.Errorf("compress: %w", err)
	}
	_, err := f.to.Write(f.compressor.Data)
	return err
}
