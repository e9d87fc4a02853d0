package spool

import (
	"encoding/binary"
	"os"
	"path/filepath"
)

// cursor is what is remembered beside the segments. It is written over in place at
// every Done and synced only at the end, so after a crash it may be old: then
// more is handed out again than necessary.
//
// File, big-endian: magic, clean uint32, done and handed as segment uint64 and
// index uint32 each, CRC-32C of what stands before.
type cursor struct {
	clean  bool     // it was written at the end, so handed can be relied on
	done   position // everything before is done
	handed position // everything from here on has never been handed out
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

// decodeCursor returns the zero value, which claims nothing, for what is no
// cursor.
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

// openCursor reads the cursor and marks it as not clean, before anything is handed
// out. When that cannot be written, as on a full disk, it removes the file: no
// cursor claims nothing. file is nil when there can be none.
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
			c.clean = false // it would lie after the next start
		}
		return c, nil, err
	}
	return c, file, nil
}
