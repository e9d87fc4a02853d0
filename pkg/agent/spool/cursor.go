package spool

import (
	"encoding/binary"
	"os"
	"path/filepath"
)

// cursor is the state kept beside the segments. Done overwrites it in place,
// and only Close syncs it. After a crash it may be stale; then more entries are
// handed out again than necessary.
//
// File, big-endian: magic, clean uint32, done and handed as segment uint64 and
// index uint32 each, CRC-32C of the bytes before.
type cursor struct {
	clean  bool     // written by Close, so handed is reliable
	done   position // every entry before it is done
	handed position // no entry from here on was handed out
}

// position is a place between two entries, before the one with this index.
type position struct {
	segment uint64
	index   uint32
}

const (
	cursorName  = "cursor"
	cursorMagic = "MFsc"
	cursorSize  = 36
)

func (c cursor) encode() []byte {
	b := append(make([]byte, 0, cursorSize), cursorMagic...)
	clean := uint32(0)
	if c.clean {
		clean = 1
	}
	b = binary.BigEndian.AppendUint32(b, clean)
	for _, p := range []position{c.done, c.handed} {
		b = binary.BigEndian.AppendUint64(b, p.segment)
		b = binary.BigEndian.AppendUint32(b, p.index)
	}
	return binary.BigEndian.AppendUint32(b, crc(b))
}

// decodeCursor returns the zero cursor, which claims nothing, for invalid
// bytes.
func decodeCursor(b []byte) cursor {
	const end = cursorSize - 4
	if len(b) != cursorSize || string(b[:4]) != cursorMagic || binary.BigEndian.Uint32(b[end:]) != crc(b[:end]) {
		return cursor{}
	}
	at := func(i int) position {
		return position{binary.BigEndian.Uint64(b[i:]), binary.BigEndian.Uint32(b[i+8:])}
	}
	return cursor{clean: binary.BigEndian.Uint32(b[4:]) == 1, done: at(8), handed: at(20)}
}

// openCursor reads the cursor and marks it not clean before anything is handed
// out. If that fails, as on a full disk, it removes the file: without a cursor
// nothing is claimed. file is nil if the cursor cannot be written.
func openCursor(dir string) (c cursor, file *os.File, err error) {
	name := filepath.Join(dir, cursorName)
	if b, readErr := os.ReadFile(name); readErr == nil {
		c = decodeCursor(b)
	}
	file, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return c, nil, err
	}
	dirty := c
	dirty.clean = false
	if _, err = file.WriteAt(dirty.encode(), 0); err == nil {
		err = file.Sync()
	}
	if err != nil {
		file.Close()
		if removeErr := os.Remove(name); removeErr != nil && c.clean {
			c.clean = false // the stale file would claim too much at the next start
		}
		return c, nil, err
	}
	return c, file, nil
}
